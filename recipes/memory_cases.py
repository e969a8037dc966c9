"""Models that :mod:`recipes.memory` compares: a KAN, and a plain network of the same widths."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes import memory_paper
from recipes.checkouts import import_file
from recipes.reference import conv_kan, efficient_kan, fast_kan

__all__ = ["NAMES", "Case", "Origins", "make_cases", "spline_case"]


def _mean(model: nn.Module, x: Tensor) -> Tensor:
    """Mean of the outputs: what is measured are the layers.

    A squared error makes five tensors of the outputs' size, in every variant alike, which are the
    peak where the layers themselves take little.
    """
    loss: Tensor = model(x).mean()
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
class Origins:
    """Where the classes that are compared come from.

    Attributes:
        upstream: folder with checkouts of efficient-kan, fast-kan and torch-conv-kan; None: the
            reference layers, whose bases take less memory than the libraries' own.
        paper: checkout of the paper's own implementation; None leaves it out.
    """

    upstream: Path | None = None
    paper: Path | None = None

    def library(self, file: str, reference: Any) -> Any:
        """Module of a library, or what stands for it."""
        return reference if self.upstream is None else import_file(self.upstream / file)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        title: what it is.
        model: builds the KAN.
        rival: builds the plain network.
        paper: builds the paper's implementation, where there is a checkout.
        shape: of the inputs.
        options: of ``kanmeta.convert``.
        loss: ``(model, inputs)`` -> number.
        repeats: steps that are timed.
        budgets: bytes of scratch to try beside the default.
    """

    title: str
    model: Callable[[], nn.Module]
    rival: Callable[[], nn.Module]
    paper: Callable[[], nn.Module] | None
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[[nn.Module, Tensor], Tensor] = _mean
    repeats: int = 15
    budgets: tuple[int, ...] = ()

    def inputs(self) -> Tensor:
        """Random inputs, mostly within the grids."""
        return torch.randn(self.shape) * 0.5


def _mlp(widths: Sequence[int], activation: type[nn.Module] = nn.SiLU) -> nn.Module:
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), activation()]
    return nn.Sequential(*layers)


def _chain(channels: Sequence[int], layer: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(*(layer(i, o) for i, o in itertools.pairwise(channels)))


def _plain_convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.InstanceNorm2d(outputs), nn.PReLU()
    )


def spline_case(
    origins: Origins,
    widths: Sequence[int],
    grid: int,
    batch: int,
    hidden: int = 32,
    activation: type[nn.Module] = nn.SiLU,
    options: Mapping[str, Any] | None = None,
    note: str = "",
    **kwargs: Any,
) -> Case:
    """Layers of efficient-kan against an MLP with ``activation``; the rest as in :class:`Case`."""
    library = origins.library("efficient-kan/src/efficient_kan/kan.py", efficient_kan)
    paper = origins.paper
    return Case(
        f"efficient-kan {[*widths]}, G={grid}, batch {batch}, hidden {hidden}{note}",
        lambda: library.KAN([*widths], grid_size=grid),
        lambda: _mlp(widths, activation),
        None if paper is None else lambda: memory_paper.splines(paper, widths, grid, hidden),
        (batch, widths[0]),
        {"hidden": hidden, **(options or {})},
        **kwargs,
    )


def _gaussian_case(origins: Origins, widths: Sequence[int], batch: int, **kwargs: Any) -> Case:
    library = origins.library("fast-kan/fastkan/fastkan.py", fast_kan)
    paper = origins.paper
    return Case(
        f"fast-kan {[*widths]}, batch {batch}, hidden 32",
        lambda: library.FastKAN([*widths]),
        lambda: _mlp(widths),
        None if paper is None else lambda: memory_paper.fast_kan(paper, widths, 32),
        (batch, widths[0]),
        {"hidden": 32},
        **kwargs,
    )


def _convolution_case(
    origins: Origins, channels: Sequence[int], shape: tuple[int, ...], **kwargs: Any
) -> Case:
    library = origins.library("torch-conv-kan/kan_convs/kan_conv.py", conv_kan)
    paper = origins.paper
    return Case(
        f"KANConv2D 3x3, channels {[*channels]}, inputs {[*shape]}, hidden 32",
        lambda: _chain(channels, lambda i, o: library.KANConv2DLayer(i, o, 3, padding=1)),
        lambda: _chain(channels, _plain_convolution),
        None if paper is None else lambda: memory_paper.convolutions(paper, channels, 3, 32),
        shape,
        {"hidden": 32},
        **kwargs,
    )


DEEP = (784, 256, 256, 256, 256)
POINTS = (2, 128, 128, 128, 1)
FINE = (256, 256, 256)
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


def make_cases(origins: Origins) -> dict[str, Case]:
    """All cases by name."""
    one, four = 1_000_000, 4_000_000
    cases = (
        spline_case(origins, (784, 32, 10), 5, 128, budgets=(one,)),
        spline_case(origins, (784, 32, 10), 10, 128, budgets=(one,)),
        spline_case(origins, DEEP, 5, 64, budgets=(one, four)),
        spline_case(origins, FINE, 80, 256, 16, repeats=9, budgets=(four,)),
        spline_case(origins, FINE, 80, 256, 64, repeats=9, budgets=(four,)),
        _convolution_case(origins, (64, 128, 256), (16, 64, 16, 16), repeats=7),
        spline_case(
            origins,
            POINTS,
            5,
            2000,
            activation=nn.Tanh,
            options={"activation": "tanh"},
            note=", Laplacian loss",
            loss=_laplacian,
            repeats=7,
            budgets=(four,),
        ),
        _gaussian_case(origins, DEEP, 8192, repeats=5),
        spline_case(origins, DEEP, 5, 8192, repeats=5),
    )
    return dict(zip(NAMES, cases, strict=True))
