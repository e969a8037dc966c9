"""A small vision transformer of timm whose MLPs are two KAN layers."""

from typing import Any

from timm import create_model
from torch import Tensor, nn

from recipes.reference.efficient_kan import KANLinear

__all__ = ["KanMlp", "vit"]


class KanMlp(nn.Module):
    """What timm puts in the place of ``Mlp``: KAN layers to the hidden width and back.

    Args:
        in_features, hidden_features: widths.
        drop: dropout after each layer.
        kwargs: timm's activation and norm of an MLP, which a KAN does without.
    """

    def __init__(
        self, in_features: int, hidden_features: int, drop: float = 0.0, **kwargs: Any
    ) -> None:
        """See the class."""
        super().__init__()
        # Tokens come out of a layer norm: few lie outside [-3, 3].
        options: dict[str, Any] = {"grid_range": (-3.0, 3.0)}
        options["enable_standalone_scale_spline"] = False
        self.fc1 = KANLinear(in_features, hidden_features, **options)
        self.fc2 = KANLinear(hidden_features, in_features, **options)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, tokens, in)`` to the same shape."""
        y: Tensor = self.drop(self.fc2(self.drop(self.fc1(x))))
        return y


def vit(widths: tuple[int, int], size: int, dim: int, depth: int) -> nn.Module:
    """Patches of 4 x 4 pixels, 4 heads, MLPs twice as wide as the tokens.

    Args:
        widths: channels of the images and classes.
        size: of the images, a multiple of 4.
        dim: width of the tokens.
        depth: number of blocks.
    """
    model: nn.Module = create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        patch_size=4,
        in_chans=widths[0],
        num_classes=widths[1],
        embed_dim=dim,
        depth=depth,
        num_heads=4,
        mlp_ratio=2,
        mlp_layer=KanMlp,
    )
    return model
