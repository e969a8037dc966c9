"""What the recipes fit: equations of Table 2, functions of Table 4, and that of Appendix B.

The 17 equations have the names of the Feynman Lectures data set (arXiv 1905.11481).

Formulas and ranges are those of pykan 0.2.8, ``kan.feynman``. Exception: I.9.18 has nine variables
there; the paper's network has six inputs, which is the dimensionless form of the KAN paper (arXiv
2404.19756, Table 2), with ranges of ours that keep the two bodies apart as pykan's do.
I.10.7 and I.15.3x are not bounded on their ranges: their errors hang on few points.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["EQUATIONS", "FUNCTIONS", "Equation", "points"]


@dataclass(frozen=True)
class Equation:
    """``function`` of one tensor a variable, each drawn uniformly from its range."""

    function: Callable[..., Tensor]
    ranges: Sequence[tuple[float, float]]


_ONE, _POSITIVE, _HALF = (-1.0, 1.0), (0.0, 1.0), (0.5, 2.0)
_NEAR, _FAR = (-1.0, -0.5), (0.5, 1.0)


def _bell(distance: Tensor, sigma: Tensor) -> Tensor:
    return torch.exp(-(distance**2) / (2 * sigma**2)) / torch.sqrt(2 * math.pi * sigma**2)


def _gamma(v: Tensor, c: Tensor) -> Tensor:
    return 1 / torch.sqrt(1 - v**2 / c**2)


EQUATIONS = {
    "I.6.20A": Equation(lambda t: _bell(t, torch.ones_like(t)), [(-3.0, 3.0)]),
    "I.6.20": Equation(_bell, [_ONE, _HALF]),
    "I.6.20B": Equation(lambda t, t1, s: _bell(t - t1, s), [(-1.5, 1.5), (-1.5, 1.5), _HALF]),
    "I.8.4": Equation(lambda a, b, c, d: torch.sqrt((b - a) ** 2 + (d - c) ** 2), [_ONE] * 4),
    "I.9.18": Equation(
        lambda a, b, c, d, e, f: a / ((b - 1) ** 2 + (c - d) ** 2 + (e - f) ** 2),
        [_ONE, _ONE, _NEAR, _FAR, _NEAR, _FAR],
    ),
    "I.12.2": Equation(
        lambda q1, q2, e, r: q1 * q2 / (4 * math.pi * e * r**2), [_ONE, _ONE, _HALF, _HALF]
    ),
    "I.12.4": Equation(lambda q, e, r: q / (4 * math.pi * e * r**2), [_ONE, _HALF, _HALF]),
    "I.12.5": Equation(lambda q, e: q * e, [_ONE] * 2),
    "I.10.7": Equation(lambda m, v, c: m * _gamma(v, c), [_POSITIVE, _POSITIVE, (1.0, 2.0)]),
    "I.12.11": Equation(
        lambda q, e, b, v, t: q * (e + b * v * torch.sin(t)), [_ONE] * 4 + [(0.0, 2 * math.pi)]
    ),
    "I.13.4": Equation(lambda m, v, u, w: m * (v**2 + u**2 + w**2) / 2, [_ONE] * 4),
    "I.13.12": Equation(
        lambda g, m1, m2, r1, r2: g * m1 * m2 * (1 / r2 - 1 / r1), [_POSITIVE] * 3 + [_HALF] * 2
    ),
    "I.14.3": Equation(lambda m, g, z: m * g * z, [_POSITIVE, _POSITIVE, _ONE]),
    "I.14.4": Equation(lambda k, x: k * x**2 / 2, [_POSITIVE, _ONE]),
    "I.15.3x": Equation(lambda x, u, t, c: (x - u * t) * _gamma(u, c), [_ONE] * 3 + [(1.0, 2.0)]),
    "I.15.10": Equation(lambda m, v, c: m * v * _gamma(v, c), [_ONE, (-0.9, 0.9), (1.1, 2.0)]),
    "I.18.4": Equation(
        lambda m1, r1, m2, r2: (m1 * r1 + m2 * r2) / (m1 + m2), [_FAR, _ONE, _FAR, _ONE]
    ),
}

Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "f1": lambda x: torch.exp((math.pi * x / 2).sin().square().mean(-1)),
    "f2": lambda x: (x**2 + x**3).sum(-1),
    "f3": lambda x: torch.exp(-x.square().mean(-1)),
    "appendix-b": lambda x: torch.exp(0.5 * (_wave(x[:, 0], x[:, 1]) + _wave(x[:, 2], x[:, 3]))),
}
"""Table 4's, and that of Appendix B, of ``(N, n)`` with entries in [-1, 1]."""


def _wave(a: Tensor, b: Tensor) -> Tensor:
    return torch.sin(math.pi * (a**2 + b**2))


def points(name: str, dims: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of a function and its values there: float64, ``(count, dims)`` and ``(count, 1)``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, dims, generator=generator, dtype=torch.float64)
    if name in FUNCTIONS:
        x = 2 * x - 1
        return x, FUNCTIONS[name](x).unsqueeze(-1)
    low, high = torch.tensor(EQUATIONS[name].ranges, dtype=torch.float64).T
    x = low + (high - low) * x
    return x, EQUATIONS[name].function(*x.T).unsqueeze(-1)
