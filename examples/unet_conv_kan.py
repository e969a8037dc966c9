"""A U-Net of KAN convolutions that finds discs in noise, trained within a budget of scratch.

python examples/unet_conv_kan.py           # minutes
python examples/unet_conv_kan.py --quick
"""

import argparse

import torch
import torch.nn.functional as F
from kan_convs import KANConv2DLayer
from torch import Tensor, nn

import kanmeta


class UNet(nn.Module):
    """Two levels, with a connection across, and one logit a pixel."""

    def __init__(self, width: int) -> None:
        """Make layers of ``width`` and ``2 * width`` channels."""
        super().__init__()
        self.down = KANConv2DLayer(1, width, 3, padding=1)
        self.bottom = KANConv2DLayer(width, 2 * width, 3, padding=1)
        self.up = KANConv2DLayer(3 * width, width, 3, padding=1)
        self.pixel = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, 1, H, W)`` of images of the same shape."""
        across = self.down(x)
        low = self.bottom(F.max_pool2d(across, 2))
        return self.pixel(self.up(torch.cat([across, F.interpolate(low, scale_factor=2)], 1)))


def discs(number: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images and their masks, ``(number, 1, size, size)`` each."""
    at = torch.arange(size) + 0.5
    centre = torch.rand(number, 2, 1, 1, generator=generator) * size
    radius = (0.15 + 0.2 * torch.rand(number, 1, 1, generator=generator)) * size
    mask = (at[:, None] - centre[:, 0]) ** 2 + (at - centre[:, 1]) ** 2 < radius**2
    noise = torch.randn(number, size, size, generator=generator)
    return (mask + 0.5 * noise).clamp(-1, 1)[:, None], mask[:, None].float()


def main(quick: bool) -> None:
    """Convert, set a budget, train, and report the overlap on new images."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = UNet(4 if quick else 16)
    print(kanmeta.plan(model, edge="pair", dim_z=4))
    kanmeta.convert(model, edge="pair", dim_z=4, execution="auto")
    # Layers whose coefficients and bases do not fit into it are generated again in backward.
    kanmeta.set_execution(model, "auto", budget=50_000 if quick else 1_000_000)
    groups = kanmeta.param_groups(model, lr=3e-3, prompt_lr=1e-2)
    optimiser = torch.optim.AdamW(groups)
    size, batch, steps = (16, 4, 4) if quick else (32, 16, 150)
    for _ in range(steps):
        x, mask = discs(batch, size, generator)
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(x), mask)
        loss.backward()
        optimiser.step()
    x, mask = discs(4 * batch, size, generator)
    with torch.no_grad():
        found = (model.eval()(x) > 0).float()
    overlap = (found * mask).sum() / (found + mask).clamp(max=1).sum()
    print(f"loss {float(loss.detach()):.3f}, intersection over union {float(overlap):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
