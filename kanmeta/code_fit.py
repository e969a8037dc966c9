"""Bending a meta-learner that starts as a linear code, so that it decodes better.

Works in the coordinates of :class:`kanmeta.linear_code.LinearCode`: targets x with unit spread
along the first axis, codes u of unit spread. Nothing here knows of models.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from kanmeta.edge_search import Targets, best_codes, places, search
from kanmeta.linear_code import blocks
from kanmeta.meta import ACTIVATIONS, MetaLearner
from kanmeta.schedule import warm_cosine

__all__ = ["decoding_error", "improve"]

_SAMPLE = 1 << 16  # edges that the meta-learner is fitted to
_BATCH = 1 << 11
_RATES = (2e-2, 5e-2)  # Adam's, of codes and of the meta-learner, both of order one here
_WARM_UP = 0.05  # share of the steps
_WORTH = 1e-3  # share of the squared error that half of the steps must take away
_SEARCHES, _APART, _LATE = 40, 64, 0.9  # for better codes: how many, steps between them, the last


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

    Adam on a sample of the edges, with searches for better codes in between: a code moves a little
    at a time, but its best place may be on another fold of what the meta-learner can give. Then
    every edge's own code by a search and Gauss-Newton steps, then W2 and b2 by least squares. What
    does not help is not kept, also at an interruption. Of up to 65,536 edges half of it has to
    help, or that was all.

    Args:
        meta: of :func:`kanmeta.code_start.start`.
        codes: of each layer, ``(E, dim_z)``; the list's items are replaced.
        targets: what to decode.
        steps: of Adam.
        generator: CPU generator for samples and batches.
        tick: called after every step.
    """
    best = decoding_error(meta, codes, targets)
    if best == 0 or steps == 0:
        return

    def keep_if_better(change: Callable[[list[Tensor]], None]) -> None:
        nonlocal best
        before = {name: p.detach().clone() for name, p in meta.named_parameters()}
        new = list(codes)
        with ExitStack() as undo:  # also after a second interruption
            undo.callback(meta.load_state_dict, before)
            try:
                change(new)
            finally:  # also after an interruption
                error = decoding_error(meta, new, targets)
                if error < best:
                    best, codes[:] = error, new
                    undo.pop_all()

    def newton(new: list[Tensor]) -> None:
        new[:] = best_codes(meta, new, targets, places(new, generator))

    # Two halves: should the second, from a good start, go wrong, the first is kept. Of very many
    # edges only a sample is fitted, and one pass over all of them costs more than the steps.
    sampled = sum(map(len, codes)) > _SAMPLE
    for part in (steps,) if sampled else (steps // 2, steps - steps // 2):
        start = best
        keep_if_better(lambda new, n=part: _descend(meta, new, targets, n, generator, tick))  # type: ignore[misc]
        keep_if_better(lambda new: _solve(meta, new, targets))
        keep_if_better(newton)
        if best > (1 - _WORTH) * start:
            return


def _descend(
    meta: MetaLearner,
    codes: list[Tensor],
    targets: Targets,
    steps: int,
    generator: torch.Generator | None,
    tick: Callable[[], object],
) -> None:
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
    warm_up, apart = max(1, round(_WARM_UP * steps)), max(_APART, steps // _SEARCHES)
    schedule = warm_cosine(optimizer, warm_up, max(1, steps))
    meta.requires_grad_()
    try:
        with torch.enable_grad():
            for step, some in zip(range(steps), _batches(len(u), generator), strict=False):
                rows = some.to(u.device)
                loss = (meta(u[rows]) - x[rows]).square().sum(1).mean()
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                tick()
                if step % apart == apart - 1 and step < _LATE * steps:
                    with torch.no_grad():
                        now = u.detach()
                        u.copy_(search(meta, now, x, places([now], generator)))
    finally:  # also after an interruption
        if share == 1:
            found = zip(torch.split(u.detach(), numbers), picks, strict=True)
            codes[:] = [torch.empty_like(c).index_copy_(0, pick, c) for c, pick in found]
    codes[:] = best_codes(meta, codes, targets, places([u.detach()], generator))


def _batches(number: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Indices of edges, all of them again and again, each time in a new order."""
    while True:
        yield from torch.split(torch.randperm(number, generator=generator), _BATCH)


@torch.no_grad()
def _solve(meta: MetaLearner, codes: Sequence[Tensor], targets: Targets) -> None:
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
