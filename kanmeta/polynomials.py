"""Functions that adapters declare by a formula: polynomials of tanh x, and some by pieces.

All are ``(rows, inputs)`` to ``(rows, functions, inputs)``, from degree 0 on.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kanmeta.formulas import Formula

__all__ = ["chebyshev", "gram", "jacobi", "relu_bumps", "splines_in_turn"]


def chebyshev(degrees: Tensor, bound: float = 1.0) -> Formula:
    """cos(k arccos t) for each k of ``degrees``, t = tanh x held between ``-bound`` and it."""
    degrees = degrees.reshape(-1, 1)

    def function(x: Tensor) -> Tensor:
        angle = torch.tanh(x).clamp(-bound, bound).acos()
        return (angle.unsqueeze(1) * degrees).cos()

    return Formula(function)


def jacobi(degree: int, a: float, b: float) -> Formula:
    """Jacobi polynomials of t = tanh x, with n = 2, 3, ... and s = 2n + a + b.

    2n (n+a+b) (s-2) P_n = (s-1) (s (s-2) t + a^2 - b^2) P_{n-1} - 2 (n+a-1) (n+b-1) s P_{n-2}
    """

    def function(x: Tensor) -> Tensor:
        t = torch.tanh(x)
        found = [torch.ones_like(t), (a - b + (a + b + 2) * t) / 2]
        for n in range(2, degree + 1):
            s = 2 * n + a + b
            up = (s - 1) * (s * (s - 2) * t + a * a - b * b) * found[-1]
            down = 2 * (n + a - 1) * (n + b - 1) * s * found[-2]
            found.append((up - down) / (2 * n * (n + a + b) * (s - 2)))
        return torch.stack(found[: degree + 1], 1)

    return Formula(function)


def gram(degree: int, activation: Callable[[Tensor], Tensor], beta: Tensor) -> Formula:
    """b(G_n) of t = tanh x with a learnt recurrence, G_n = t G_{n-1} - c_n beta[n-1] G_{n-2}."""

    def function(x: Tensor, beta: Tensor) -> Tensor:
        t = torch.tanh(x)
        found = [torch.ones_like(t), t]
        for n in range(2, degree + 1):
            m = n - 1
            factor = (2 * n - 1) * m**2 * (4 * m**2 - 1) / n**2
            found.append(t * found[-1] - factor * beta[m] * found[-2])
        return activation(torch.stack(found[: degree + 1], 1))

    return Formula(function, (beta,))


def relu_bumps(low: Tensor, high: Tensor, height: float) -> Formula:
    """(height relu(x - low) relu(high - x))^2 for the ends ``(inputs, functions)`` of each bump."""

    def function(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        return (height * torch.relu(x - low.T) * torch.relu(high.T - x)).square()

    return Formula(function, (low, high), own=2)


def splines_in_turn(grid: Tensor, order: int) -> Formula:
    """B-splines on the knots ``(inputs, T)`` of each input, or ``(1, T)`` of all, by Cox-de Boor.

    For a grid that a cast of the layer left as it was: the differences of knots are rounded in its
    own dtype, as in its library. Else :mod:`kanmeta.splines` is faster.
    """

    def function(x: Tensor, grid: Tensor) -> Tensor:
        knots, x = grid.T, x.unsqueeze(1)
        values = ((x >= knots[:-1]) & (x < knots[1:])).to(x)
        for k in range(1, order + 1):
            rising = (x - knots[: -k - 1]) / (knots[k:-1] - knots[: -k - 1])
            falling = (knots[k + 1 :] - x) / (knots[k + 1 :] - knots[1:-k])
            values = rising * values[:, :-1] + falling * values[:, 1:]
        return values

    return Formula(function, (grid,), own=1)
