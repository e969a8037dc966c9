"""The best code of each edge for a given meta-learner: a search, then Gauss-Newton steps."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kanmeta.linear_code import blocks
from kanmeta.meta import ACTIVATIONS, MetaLearner

__all__ = ["GRID", "Targets", "best_codes", "grid", "places", "search"]

Targets = Callable[[int, "slice | Tensor"], Tensor]
"""(layer, edges) -> their targets ``(E, dim_w)``."""

GRID = {1: 1024, 2: 64}
"""dim_z -> points an axis on which the best code of an edge is looked for."""

_OTHERS = 4096  # codes of other edges that are looked at, where a grid has too many points


@torch.no_grad()
def best_codes(
    meta: MetaLearner, codes: Sequence[Tensor], targets: Targets, points: Tensor
) -> list[Tensor]:
    """Best code of each edge for this meta-learner, from where it is or one of ``points``."""
    result = [torch.empty_like(u) for u in codes]
    for layer, u in enumerate(codes):
        for rows in blocks(len(u)):
            x = targets(layer, rows)
            result[layer][rows] = _newton(meta, search(meta, u[rows], x, points), x)
    return result


def places(codes: Sequence[Tensor], generator: torch.Generator | None) -> Tensor:
    """Codes to try, ``(points, dim_z)``: a grid, or of more than two numbers those of some edges.

    Args:
        codes: of each layer, ``(E, dim_z)``.
        generator: CPU generator of the choice of edges.
    """
    if codes[0].shape[1] in GRID:
        return grid(torch.cat([torch.stack([u.amin(0), u.amax(0)]) for u in codes]))
    share = _OTHERS / sum(map(len, codes))
    if share >= 1:
        return torch.cat(list(codes))
    numbers = [math.ceil(len(u) * share) for u in codes]
    picks = [
        torch.randint(len(u), (n,), generator=generator)
        for u, n in zip(codes, numbers, strict=True)
    ]
    return torch.cat([u[p.to(u.device)] for u, p in zip(codes, picks, strict=True)])


def grid(u: Tensor) -> Tensor:
    """Points of a grid over all codes ``(E, dim_z)`` and a little beyond, ``(points, dim_z)``."""
    low, high = u.amin(0), u.amax(0)
    line = torch.linspace(-0.05, 1.05, GRID[u.shape[1]]).to(u)
    axes = [lo + (hi - lo) * line for lo, hi in zip(low, high, strict=True)]
    return torch.cartesian_prod(*axes).view(-1, u.shape[1])


@torch.no_grad()
def search(meta: MetaLearner, u: Tensor, x: Tensor, points: Tensor) -> Tensor:
    """The best of ``points`` for each edge, where it beats ``u``."""
    decoded = meta(points)
    result = u.clone()
    for rows in (slice(i, i + 4096) for i in range(0, len(u), 4096)):
        index = torch.cdist(x[rows], decoded).argmin(1)  # rounds, as it takes squares apart
        better = (decoded[index] - x[rows]).norm(dim=1) < (meta(u[rows]) - x[rows]).norm(dim=1)
        result[rows] = torch.where(better[:, None], points[index], u[rows])
    return result


def _newton(meta: MetaLearner, u: Tensor, x: Tensor, rounds: int = 4) -> Tensor:
    """Damped Gauss-Newton steps of each edge's code; a step that does not help is not taken."""
    damping = 1e-6 * torch.eye(meta.dim_z).to(u)
    for _ in range(rounds):
        slope = _jacobian(meta, u)  # (E, dim_w, dim_z)
        error = x - meta(u)
        normal = slope.mT @ slope
        scale = normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-12
        step = torch.linalg.solve(normal + scale * damping, slope.mT @ error[:, :, None])[:, :, 0]
        new = u + step
        better = (x - meta(new)).square().sum(1) < error.square().sum(1)
        u = torch.where(better[:, None], new, u)
    return u


def _jacobian(meta: MetaLearner, u: Tensor) -> Tensor:
    """dM/du, ``(E, dim_w, dim_z)``."""
    with torch.enable_grad():
        inner = torch.nn.functional.linear(u, meta.weight1, meta.bias1).detach().requires_grad_()
        (slope,) = torch.autograd.grad(ACTIVATIONS[meta.activation](inner).sum(), inner)
    # Of all three at once einsum might make (E, dim_w, hidden), gigabytes of a wide meta-learner.
    outer = torch.einsum("wh,hz->hwz", meta.weight2.detach(), meta.weight1.detach())
    return (slope @ outer.flatten(1)).view(-1, meta.dim_w, meta.dim_z)
