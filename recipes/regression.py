"""Fitting functions of one value on all points at once: by LBFGS, as the paper does, or better."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recipes.job import Task
from recipes.levenberg_marquardt import LevenbergMarquardt

__all__ = ["ITERATIONS", "regression"]

ITERATIONS = 10  # of an epoch


def lbfgs(
    net: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """LBFGS with the released code's options, and an epoch of :data:`ITERATIONS` of it."""
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=ITERATIONS,
        history_size=10,
        tolerance_grad=1e-32,
        tolerance_change=1e-32,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(net)
        torch.autograd.backward(value)
        return value

    def epoch(number: int) -> float:
        return float(optimizer.step(closure).detach())  # type: ignore[no-untyped-call]

    return optimizer, epoch


def levenberg_marquardt(
    net: nn.Module, errors: Callable[[nn.Module, Tensor], Tensor], rows: Tensor
) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """The optimiser, and an epoch of :data:`ITERATIONS` steps for all ``rows``."""
    optimizer = LevenbergMarquardt(net, errors, damping=1.0)

    def epoch(number: int) -> float:
        losses = [optimizer.step(rows) for _ in range(ITERATIONS)]
        return losses[0]  # before the epoch, as with LBFGS

    return optimizer, epoch


def regression(
    net: nn.Module,
    data: Mapping[str, tuple[Tensor, ...]],
    *,
    source: Mapping[str, Any],
    notes: tuple[str, ...],
    more: Callable[[], dict[str, Any]],
    shift: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    second_order: bool = False,
) -> Task:
    """Fit a function of one value; the score is the mean squared error.

    Args:
        net: what is trained.
        data: inputs and values of each part.
        source, notes, more: see :class:`recipes.job.Task`.
        shift, scale: the net learns (value - shift) / scale; the score is that of values.
        second_order: by Levenberg and Marquardt's method instead of LBFGS.
    """
    rows = {part: torch.cat([x, (y - shift) / scale], 1) for part, (x, y) in data.items()}

    def errors(some: nn.Module, points: Tensor) -> Tensor:
        y: Tensor = some(points[:, :-1])
        return y[:, 0] - points[:, -1]

    def loss(some: nn.Module, part: str = "train") -> Tensor:
        return errors(some, rows[part]).square().mean()

    def score(part: str) -> float:
        with torch.no_grad():
            return float(loss(net, part) * scale**2)

    if second_order:
        optimizer, epoch = levenberg_marquardt(net, errors, rows["train"])
    else:
        optimizer, epoch = lbfgs(net, loss)
    return Task(
        model=net,
        optimizer=optimizer,
        epoch=epoch,
        score=score,
        loss=loss,
        metric="MSE",
        higher=False,
        source=source,
        notes=notes,
        more=more,
    )
