"""Families of polynomials by their three-term recurrences, all degrees at once.

Each function maps ``(*)`` to ``(*, degree + 1)``: the values of degree 0 to ``degree`` at ``x``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["chebyshev", "gram", "jacobi", "legendre"]


def chebyshev(x: Tensor, degree: int) -> Tensor:
    """T_0 ... T_degree of the first kind: T_n = 2 x T_{n-1} - T_{n-2}, T_1 = x."""
    return _recur(x, x, degree, lambda n, p, q: 2 * x * p - q)


def legendre(x: Tensor, degree: int) -> Tensor:
    """P_0 ... P_degree: n P_n = (2n - 1) x P_{n-1} - (n - 1) P_{n-2}, P_1 = x."""
    return _recur(x, x, degree, lambda n, p, q: ((2 * n - 1) * x * p - (n - 1) * q) / n)


def jacobi(x: Tensor, degree: int, a: float, b: float) -> Tensor:
    """Orthogonal on [-1, 1] with weight (1 - x)^a (1 + x)^b; P_1 = (a - b + (a + b + 2) x) / 2.

    With s = 2n + a + b (Abramowitz and Stegun, 22.7.1):
    2n (n+a+b) (s-2) P_n = (s-1) (s (s-2) x + a^2 - b^2) P_{n-1} - 2 (n+a-1) (n+b-1) s P_{n-2}
    """

    def step(n: int, p: Tensor, q: Tensor) -> Tensor:
        s = 2 * n + a + b
        first = (s - 1) * (s * (s - 2) * x + a**2 - b**2) * p
        return (first - 2 * (n + a - 1) * (n + b - 1) * s * q) / (2 * n * (n + a + b) * (s - 2))

    return _recur(x, (a - b + (a + b + 2) * x) / 2, degree, step)


def gram(x: Tensor, degree: int, beta: Tensor) -> Tensor:
    """G_0 ... G_degree with a learnt recurrence: G_n = x G_{n-1} - c_n beta[n-1] G_{n-2}, G_1 = x.

    c_n = (2n - 1) m^2 (4 m^2 - 1) / n^2 with m = n - 1. ``beta`` has shape ``(degree + 1,)``; its
    first and last numbers are not used.
    """

    def step(n: int, p: Tensor, q: Tensor) -> Tensor:
        m = n - 1
        return x * p - (2 * n - 1) * m**2 * (4 * m**2 - 1) / n**2 * beta[m] * q

    return _recur(x, x, degree, step)


def _recur(
    x: Tensor, first: Tensor, degree: int, step: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Start with 1 and ``first``, go on with ``step(n, degree n - 1, degree n - 2)``."""
    found = [torch.ones_like(x), first]
    for n in range(2, degree + 1):
        found.append(step(n, found[-1], found[-2]))
    return torch.stack(found[: degree + 1], dim=-1)
