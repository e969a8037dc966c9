"""Models that :mod:`recipes.memory` compares: a KAN, and a plain network of the same widths."""

import importlib.util
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.reference import conv_kan, efficient_kan, fast_kan

__all__ = ["NAMES", "Case", "make_cases"]


def _mean_square(model: nn.Module, x: Tensor) -> Tensor:
    loss: Tensor = model(x).square().mean()
    return loss


def _laplacian(model: nn.Module, x: Tensor) -> Tensor:
    """Residual of a Poisson equation, u_xx + u_yy = 1, squared."""
    points = x.detach().requires_grad_()
    u = model(points)
    (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    parts = [
        torch.autograd.grad(slope[:, i].sum(), points, create_graph=True)[0][:, i]
        for i in range(points.shape[1])
    ]
    return (torch.stack(parts).sum(0) - 1).square().mean()


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        title: what it is.
        model: builds the KAN.
        rival: builds the plain network.
        shape: of the inputs.
        options: of ``kanmeta.convert``.
        loss: ``(model, inputs)`` -> number.
        repeats: steps that are timed.
        budgets: bytes of scratch to try beside the default.
    """

    title: str
    model: Callable[[], nn.Module]
    rival: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[[nn.Module, Tensor], Tensor] = _mean_square
    repeats: int = 9
    budgets: tuple[int, ...] = ()

    def inputs(self) -> Tensor:
        """Random inputs, mostly within the grids."""
        return torch.randn(self.shape) * 0.5


def _mlp(widths: Sequence[int], activation: type[nn.Module] = nn.SiLU) -> nn.Module:
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), activation()]
    return nn.Sequential(*layers)


def _module(path: Path) -> Any:
    """Import a library's file from a checkout."""
    name = f"_checkout_{path.parent.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"there is no {path}; expected a folder of checkouts")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _convolutions(layer: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(layer(64, 128), layer(128, 256))


def _plain_convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.InstanceNorm2d(outputs), nn.PReLU()
    )


DEEP = (784, 256, 256, 256, 256)
POINTS = (2, 128, 128, 128, 1)
NAMES = (
    "small-net",
    "small-net-G10",
    "small-batch",
    "fine-grid",
    "fine-grid-64",
    "convolution",
    "pinn",
    "fast-kan",
    "large-batch",
)
"""Of the cases; small ones first."""


def make_cases(upstream: Path | None) -> dict[str, Case]:
    """All cases by name.

    Args:
        upstream: folder with checkouts of efficient-kan and fast-kan; None: the reference layers,
            whose bases take less memory than the libraries' own.
    """
    library: Any = efficient_kan
    gaussian: Any = fast_kan
    if upstream is not None:
        library = _module(upstream / "efficient-kan/src/efficient_kan/kan.py")
        gaussian = _module(upstream / "fast-kan/fastkan/fastkan.py")

    def splines(
        widths: Sequence[int], grid: int, batch: int, hidden: int = 32, **kwargs: Any
    ) -> Case:
        return Case(
            f"efficient-kan {[*widths]}, G={grid}, batch {batch}, hidden {hidden}",
            lambda: library.KAN([*widths], grid_size=grid),
            lambda: _mlp(widths),
            (batch, widths[0]),
            {"hidden": hidden},
            **kwargs,
        )

    cases = (
        splines((784, 32, 10), 5, 128, budgets=(1_000_000,)),
        splines((784, 32, 10), 10, 128, budgets=(1_000_000,)),
        splines(DEEP, 5, 64, budgets=(1_000_000, 4_000_000)),
        splines((256, 256, 256), 80, 256, 16, repeats=5, budgets=(4_000_000,)),
        splines((256, 256, 256), 80, 256, 64, repeats=5, budgets=(4_000_000,)),
        Case(
            "KANConv2D 3x3, 64-128-256 channels, 16x16 images, batch 16",
            lambda: _convolutions(lambda i, o: conv_kan.KANConv2DLayer(i, o, 3, padding=1)),
            lambda: _convolutions(_plain_convolution),
            (16, 64, 16, 16),
            repeats=3,
        ),
        Case(
            f"efficient-kan {[*POINTS]}, 2000 points, Laplacian loss",
            lambda: library.KAN([*POINTS]),
            lambda: _mlp(POINTS, nn.Tanh),
            (2000, 2),
            {"activation": "tanh"},
            loss=_laplacian,
            repeats=3,
            budgets=(4_000_000,),
        ),
        Case(
            f"fast-kan {[*DEEP]}, batch 8192",
            lambda: gaussian.FastKAN([*DEEP]),
            lambda: _mlp(DEEP),
            (8192, 784),
            repeats=1,
        ),
        splines(DEEP, 5, 8192, repeats=1),
    )
    return dict(zip(NAMES, cases, strict=True))
