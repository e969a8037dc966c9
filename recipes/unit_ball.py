"""What the equations of Table 8 share: points in the unit ball, the exact solution, residuals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.laplacian import value_gradient_laplacian

__all__ = ["EQUATIONS", "Solution", "ball", "judge", "residuals"]

# Nonlinear part f of the equation: Laplacian(u) + f(u) = g.
EQUATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Poisson": torch.zeros_like,
    "Allen-Cahn": lambda u: u - u**3,
    "Sine-Gordon": torch.sin,
}


@dataclass(frozen=True)
class Solution:
    """u(x) = (1 - |x|^2) S(x), S = sum_i c_i sin(x_i + cos(x_{i+1}) + x_{i+1} cos(x_i)).

    Attributes:
        c: ``(d - 1,)``; numpy's standard normal numbers of seed 0, as in the released code.
    """

    c: Tensor

    @classmethod
    def of(cls, dims: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "Solution":
        """The solution in ``dims`` dimensions."""
        c = np.random.RandomState(0).randn(dims - 1)
        return cls(torch.from_numpy(c).to(device, dtype))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u and its Laplacian at ``x`` (N, d): ``(N,)`` each."""
        a, b = x[:, :-1], x[:, 1:]
        inner = a + b.cos() + b * a.cos()
        by_a, by_b = 1 - b * a.sin(), a.cos() - b.sin()
        wave, slope = self.c * inner.sin(), self.c * inner.cos()
        total = wave.sum(1)
        # x . grad S and Laplacian of S
        along = (slope * (a * by_a + b * by_b)).sum(1)
        bent = slope * (-b * a.cos() - b.cos()) - wave * (by_a.square() + by_b.square())
        room = 1 - x.square().sum(1)
        return room * total, room * bent.sum(1) - 4 * along - 2 * x.shape[1] * total


def ball(count: int, dims: int, generator: torch.Generator, surface: bool = False) -> Tensor:
    """Points of random direction in the unit ball: ``(count, dims)``; radius uniform in 0 to 1."""
    x = torch.randn(count, dims, generator=generator)
    x = F.normalize(x)
    return x if surface else x * torch.rand(count, 1, generator=generator)


def _relative(error: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(exact))


def residuals(
    equation: str, solution: Solution, hard_boundary: bool
) -> Callable[[nn.Module, Tensor, Tensor | None], Tensor]:
    """Return a function of network, points ``(N, d)`` and axes: Laplacian(u) + f(u) - g, ``(N,)``.

    Args:
        equation: a key of :data:`EQUATIONS`.
        solution: the exact one, which g follows from.
        hard_boundary: u is the network times 1 - |x|^2, else the network.
    """
    source_of = EQUATIONS[equation]

    def residual(some: nn.Module, x: Tensor, axes: Tensor | None) -> Tensor:
        y, gradient, laplacian = (t.squeeze(-1) for t in value_gradient_laplacian(some, x, axes))
        u, lap, share = y, laplacian, 1.0
        if axes is not None:
            share = x.shape[1] / len(axes)
        if hard_boundary:
            room = 1 - x.square().sum(1)
            along = ((x if axes is None else x[:, axes]) * gradient).sum(1)
            count = x.shape[1] if axes is None else len(axes)
            u, lap = room * y, room * laplacian - 4 * along - 2 * count * y
        exact, exact_laplacian = solution(x)
        return share * lap + source_of(u) - exact_laplacian - source_of(exact)

    return residual


def judge(net: nn.Module, config: Mapping[str, Any], solution: Solution) -> Callable[[str], float]:
    """Return the score of a part: validation by the relative residual, test by the relative error.

    Args:
        net: the network, in the dtype and on the device of ``solution``.
        config: of the job: ``equation``, ``hard_boundary``, ``judged`` (how many points).
        solution: the exact one; of validation it gives g only.
    """
    residual = residuals(config["equation"], solution, config["hard_boundary"])
    source_of, dims = EQUATIONS[config["equation"]], len(solution.c) + 1
    judged = {
        part: ball(config["judged"], dims, torch.Generator().manual_seed(seed)).to(solution.c)
        for part, seed in (("validation", 1), ("test", 2))
    }

    @torch.no_grad()
    def score(part: str) -> float:
        x = judged[part]
        exact, laplacian = solution(x)
        if part == "validation":
            return _relative(residual(net, x, None), laplacian + source_of(exact))
        u = net(x).squeeze(-1)
        if config["hard_boundary"]:
            u = u * (1 - x.square().sum(1))
        return _relative(u - exact, exact)

    return score
