"""A meta-learner that decodes as well as the best linear code, or better.

Works in the coordinates of :class:`kanmeta.linear_code.LinearCode`: targets x with unit spread
along the first axis, codes u of unit spread. ``start`` makes a meta-learner that *is* the linear
code; ``improve`` bends it. Nothing here knows of models.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kanmeta.linear_code import blocks
from kanmeta.meta import ACTIVATIONS, MetaLearner

__all__ = ["Targets", "decoding_error", "improve", "start"]

Targets = Callable[[int, "slice | Tensor"], Tensor]
"""(layer, edges) -> their targets ``(E, dim_w)``."""

_SAMPLE = 1 << 16  # edges that the meta-learner is fitted to
_BATCH = 1 << 14
_GRID = {1: 1024, 2: 64}  # dim_z -> points an axis on which the best code of an edge is looked for
_RATES = (2e-2, 1e-2)  # Adam's, of codes and of the meta-learner, both of order one here


@torch.no_grad()
def start(
    axes: Tensor, codes: Sequence[Tensor], dim_z: int, hidden: int, activation: str, bias: bool
) -> tuple[MetaLearner, list[Tensor], Tensor]:
    """Return M, codes u and a constant with M(u) + constant = axes @ code, exactly.

    a(u) - a(-u) = u for relu, gelu and silu: a pair of hidden units for each number, where there
    are enough. Else the codes are shifted to where these activations are linear, which takes one
    unit. A very small tanh is linear too. Units that are left over do nothing yet.

    Args:
        axes: ``(dim_w, k)``.
        codes: of each layer, ``(E, k)``; k <= dim_z, k <= hidden.
        dim_z, hidden, activation, bias: of the meta-learner.
    """
    dim_w, k = axes.shape
    meta = MetaLearner(dim_z, hidden, dim_w, activation, bias).to(axes)
    u = [torch.nn.functional.pad(c, (0, dim_z - k)) for c in codes]
    largest = max(float(c.abs().max()) for c in codes)
    eye = torch.eye(k).to(axes)
    constant = axes.new_zeros(dim_w)
    used = k
    if activation in ("relu", "gelu", "silu") and hidden >= 2 * k:
        used = 2 * k
        meta.weight1[:used, :k] = torch.cat([eye, -eye])
        meta.weight2[:, :used] = torch.cat([axes, -axes], dim=1)
    elif activation in ("relu", "gelu", "silu"):
        steep = 1.0 if activation == "relu" else 64.0  # a(x) = x to rounding from 64 on
        shift = math.ceil(largest) + 1.0
        u = [torch.cat([c[:, :k] + shift, c[:, k:]], dim=1) for c in u]
        constant = -shift * axes.sum(1)
        meta.weight1[:k, :k] = steep * eye
        meta.weight2[:, :k] = axes / steep
    else:
        small = 1.0
        if activation == "tanh":
            small = math.sqrt(torch.finfo(axes.dtype).eps) / max(largest, 1.0)
        meta.weight1[:k, :k] = small * eye
        meta.weight2[:, :k] = axes / small
    if used < hidden:
        _spare_units(meta, used, u)
    return meta, u, constant


def _spare_units(meta: MetaLearner, used: int, codes: Sequence[Tensor]) -> None:
    """Bend the units that do nothing yet somewhere among the codes; their W2 stays 0.

    The first axis, where the codes spread most, gets most of the bends.
    """
    number = meta.hidden - used
    every = torch.cat([c[:: max(1, len(c) // 1024)] for c in codes])
    unit = torch.arange(number).to(every)
    others = torch.arange(1, meta.dim_z).to(every)
    weight = torch.cat(
        [(1 - 2 * (unit % 2))[:, None], torch.cos(unit[:, None] * 2 * others)], dim=1
    )
    meta.weight1[used:] = weight
    if meta.bias1 is not None:
        at = (every @ weight.T).sort(0).values  # (sample, units)
        place = ((unit + 0.5) / number * len(at)).long()
        meta.bias1[used:] = -at.gather(0, place[None])[0]


@torch.no_grad()
def decoding_error(meta: MetaLearner, codes: Sequence[Tensor], targets: Targets) -> float:
    """Sum of squared errors in the targets' coordinates."""
    total = 0.0
    for layer, u in enumerate(codes):
        for rows in blocks(len(u)):
            error = meta(u[rows]) - targets(layer, rows)
            total += float(error.double().square().sum())
    return total if math.isfinite(total) else math.inf


def improve(
    meta: MetaLearner,
    codes: list[Tensor],
    targets: Targets,
    steps: int,
    generator: torch.Generator | None,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Lower the decoding error of ``meta`` and ``codes``, in place; it never rises.

    Adam on a sample of the edges, then every edge's own code by a search and Gauss-Newton steps,
    then W2 and b2 by least squares. What does not help is not kept.

    Args:
        meta: of :func:`start`.
        codes: of each layer, ``(E, dim_z)``; the list's items are replaced.
        targets: what to decode.
        steps: of Adam.
        generator: CPU generator for samples and batches.
        tick: called after every step.
    """
    best = decoding_error(meta, codes, targets)
    if best == 0 or steps == 0:
        return

    def keep_if_better(change: Callable[[], list[Tensor]]) -> None:
        nonlocal best
        before = {name: p.detach().clone() for name, p in meta.named_parameters()}
        new = change()
        error = decoding_error(meta, new, targets)
        if error < best:
            best, codes[:] = error, new
        else:
            meta.load_state_dict(before)

    # Two halves: should the second, from a good start, go wrong, the first is kept. Of very many
    # edges only a sample is fitted, and one pass over all of them costs more than the steps.
    sampled = sum(map(len, codes)) > _SAMPLE
    for part in (steps,) if sampled else (steps // 2, steps - steps // 2):
        keep_if_better(lambda part=part: _descend(meta, codes, targets, part, generator, tick))  # type: ignore[misc]
        keep_if_better(lambda: _solve(meta, codes, targets))
        keep_if_better(lambda: _each_edge(meta, codes, targets))


def _descend(
    meta: MetaLearner,
    codes: Sequence[Tensor],
    targets: Targets,
    steps: int,
    generator: torch.Generator | None,
    tick: Callable[[], object],
) -> list[Tensor]:
    numbers = [len(u) for u in codes]
    share = min(1.0, _SAMPLE / sum(numbers))
    picks = [
        torch.randperm(n, generator=generator)[: max(1, round(n * share))].to(u.device)
        for n, u in zip(numbers, codes, strict=True)
    ]
    u = torch.cat([c[p] for c, p in zip(codes, picks, strict=True)]).requires_grad_()
    x = torch.cat([targets(layer, p) for layer, p in enumerate(picks)])
    rates = [{"params": [u], "lr": _RATES[0]}, {"params": list(meta.parameters()), "lr": _RATES[1]}]
    optimizer = torch.optim.Adam(rates)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    meta.requires_grad_()
    with torch.enable_grad():
        for step in range(steps):
            rows: slice | Tensor = slice(None)
            if len(u) > 2 * _BATCH:
                rows = torch.randint(len(u), (_BATCH,), generator=generator).to(u.device)
            loss = (meta(u[rows]) - x[rows]).square().sum(1).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            tick()
            if step % 64 == 63 and step < steps * 0.8:
                with torch.no_grad():
                    u.copy_(_search(meta, u.detach(), x))
    if share == 1:
        new = [c.clone() for c in codes]
        for c, p, part in zip(new, picks, torch.split(u.detach(), numbers), strict=True):
            c[p] = part
        codes = new
    return _each_edge(meta, codes, targets)


@torch.no_grad()
def _each_edge(meta: MetaLearner, codes: Sequence[Tensor], targets: Targets) -> list[Tensor]:
    """Best code of each edge for this meta-learner."""
    result = [torch.empty_like(u) for u in codes]
    for layer, u in enumerate(codes):
        for rows in blocks(len(u)):
            x = targets(layer, rows)
            result[layer][rows] = _newton(meta, _search(meta, u[rows], x), x)
    return result


@torch.no_grad()
def _search(meta: MetaLearner, u: Tensor, x: Tensor) -> Tensor:
    """For one and two numbers: the best point of a grid over all codes, where it beats ``u``."""
    if meta.dim_z not in _GRID:
        return u
    low, high = u.amin(0), u.amax(0)
    line = torch.linspace(-0.05, 1.05, _GRID[meta.dim_z]).to(u)
    points = torch.cartesian_prod(
        *[lo + (hi - lo) * line for lo, hi in zip(low, high, strict=True)]
    )
    points = points.view(-1, meta.dim_z)
    decoded = meta(points)
    result = u.clone()
    for rows in (slice(i, i + 4096) for i in range(0, len(u), 4096)):
        distances = torch.cdist(x[rows], decoded)
        nearest, index = distances.min(1)
        better = nearest < (meta(u[rows]) - x[rows]).norm(dim=1)
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
    return torch.einsum("wh,eh,hz->ewz", meta.weight2.detach(), slope, meta.weight1.detach())


@torch.no_grad()
def _solve(meta: MetaLearner, codes: Sequence[Tensor], targets: Targets) -> list[Tensor]:
    """Set W2 and b2 to the least-squares solution for these codes."""
    size = meta.hidden + meta.has_bias
    normal = torch.zeros(size, size, dtype=torch.float64, device=codes[0].device)
    right = torch.zeros(size, meta.dim_w, dtype=torch.float64, device=codes[0].device)
    for layer, u in enumerate(codes):
        for rows in blocks(len(u)):
            h = torch.nn.functional.linear(u[rows], meta.weight1, meta.bias1)
            h = ACTIVATIONS[meta.activation](h).double()
            h = torch.nn.functional.pad(h, (0, int(meta.has_bias)), value=1.0)
            normal += h.T @ h
            right += h.T @ targets(layer, rows).double()
    # Units that do nearly the same must not get huge weights of opposite sign.
    ridge = 1e-5 * normal.diagonal().mean() + 1e-30
    solution = torch.linalg.solve(normal + ridge * torch.eye(size).to(normal), right)
    meta.weight2.copy_(solution[: meta.hidden].T)
    if meta.bias2 is not None:
        meta.bias2.copy_(solution[-1])
    return list(codes)
