"""RBF convolutions with the names and layouts of torch-conv-kan's ``FastKANConv{1,2,3}DLayer``.

y = base_conv(b(x)) + spline_conv(rbf(norm(dropout(x)))), for each group of channels
rbf_k(x) = exp(-((x - grid_k) / h)^2), h the distance of the K centres

The norm is over *input* channels. In the weight of ``spline_conv``, (out, in * K, *kernel), the K
coefficients of a channel are adjacent.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from recipes.reference.conv_groups import GroupedConv
from recipes.reference.fast_kan import RadialBasisFunction

__all__ = [
    "FastKANConv1DLayer",
    "FastKANConv2DLayer",
    "FastKANConv3DLayer",
    "FastKANConvNDLayer",
]


class FastKANConvNDLayer(GroupedConv):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim, kernel_size, groups, padding, stride, dilation: see
            :class:`GroupedConv`.
        grid_size: number K of centres, evenly spaced from end to end of ``grid_range``.
        base_activation: class of the base function b.
        grid_range: first and last centre.
        dropout: share of input channels dropped in the branch of the Gaussians.
        norm_layer, norm_kwargs: class of the norm and its arguments; default: InstanceNorm.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int | tuple[int, ...],
        groups: int = 1,
        padding: int | tuple[int, ...] = 0,
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        grid_size: int = 8,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
        grid_range: Sequence[float] = (-2.0, 2.0),
        dropout: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        **norm_kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(
            input_dim, output_dim, kernel_size, groups, padding, stride, dilation, dropout
        )
        self.base_activation = base_activation()
        self.base_conv = self.convolutions(self.group_in, self.group_out)
        self.spline_conv = self.convolutions(self.group_in * grid_size, self.group_out)
        self.layer_norm = self.norms(self.group_in, norm_layer, **norm_kwargs)
        self.rbf = RadialBasisFunction(grid_range[0], grid_range[1], grid_size)

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        normed = self.layer_norm[group](self.dropout(x))
        basis = self.rbf(normed).movedim(-1, 2).flatten(1, 2)
        y: Tensor = self.base_conv[group](self.base_activation(x)) + self.spline_conv[group](basis)
        return y


class FastKANConv1DLayer(FastKANConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class FastKANConv2DLayer(FastKANConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class FastKANConv3DLayer(FastKANConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3
