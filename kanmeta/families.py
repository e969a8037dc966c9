"""Basis functions of one formula whose centres are evenly spaced: what a kernel has to know."""

from dataclasses import dataclass

__all__ = ["GAUSSIAN", "SILU", "SPLINE", "Family"]

SILU, SPLINE, GAUSSIAN = 0, 1, 2


@dataclass(frozen=True)
class Family:
    """Functions of one branch.

    Attributes:
        kind: ``SILU``: x sigmoid(x); ``SPLINE``: cubic B-spline of |x - centre| / spacing;
            ``GAUSSIAN``: exp(-((x - centre) / width)^2).
        number: how many functions.
        first: centre of the first.
        spacing: distance of centres.
        width: of a Gaussian.
    """

    kind: int
    number: int = 1
    first: float = 0.0
    spacing: float = 1.0
    width: float = 1.0
