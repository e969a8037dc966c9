"""The training loop: epoch after epoch, resumable, with the epoch that counts picked on the way.

A run that was killed goes on after its last finished epoch as if it had never stopped: bit for bit
on one thread of a CPU. So what an epoch does may depend on the job and on the epoch's number only.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanmeta.atomic import replacing
from recipes.engine import is_main
from recipes.job import Protocol, Task

__all__ = ["Curve", "train"]


@dataclass
class Curve:
    """What every epoch gave; None where it is not finite.

    Attributes:
        train_loss: mean over the epoch.
        validation: score on held-out data; protocol ``fair``.
        test: score on the test data; protocol ``paper`` only.
        epoch: number of the best epoch, from 0; -1 before there is one.
        seconds: spent on training and judging.
    """

    train_loss: list[float | None] = field(default_factory=list)
    validation: list[float | None] = field(default_factory=list)
    test: list[float | None] = field(default_factory=list)
    epoch: int = -1
    seconds: float = 0.0


def train(
    task: Task,
    *,
    protocol: Protocol,
    epochs: int,
    count: Callable[[int], object] = lambda n: None,
    resume: Path | None = None,
    key: str = "",
) -> tuple[float | None, Curve]:
    """Train, leave the model as it was after the best epoch, and judge it on the test data.

    Args:
        task: what; its model and optimiser are changed in place.
        protocol: what picks the epoch, see :class:`recipes.job.Job`.
        epochs: how many.
        count: called with the number of epochs that have come to an end since the last call.
        resume: a file for the state after the last finished epoch.
        key: what the state belongs to; a file with another key is ignored and overwritten.

    Returns:
        The score on the test data, None where it is not finite, and the curve.
    """
    curve, best = _restore(resume, key, task)
    scores = curve.validation if protocol == "fair" else curve.test
    count(len(scores))
    for epoch in range(len(scores), epochs):
        start = time.perf_counter()
        curve.train_loss.append(_finite(task.epoch(epoch)))
        scores.append(_finite(task.score("validation" if protocol == "fair" else "test")))
        if curve.epoch < 0 or _better(scores[-1], scores[curve.epoch], task.higher):
            curve.epoch = epoch
            best = copy.deepcopy(task.judged.state_dict())
        curve.seconds += time.perf_counter() - start
        if resume is not None and is_main():
            _keep(resume, key, task, curve, best)
        count(1)
    task.model.load_state_dict(best)
    task.judged.load_state_dict(best)
    value = _finite(task.score("test")) if protocol == "fair" else curve.test[curve.epoch]
    return value, curve


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _better(new: float | None, old: float | None, higher: bool) -> bool:
    if new is None or old is None:
        return new is not None
    return new > old if higher else new < old


def _keep(
    path: Path, key: str, task: Task, curve: Curve, best: Mapping[str, Tensor] | None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "key": key,
        "model": task.model.state_dict(),
        "judged": task.judged.state_dict(),
        "optimizer": task.optimizer.state_dict(),
        "curve": asdict(curve),
        "best": best,
    }
    with replacing(path) as new:
        torch.save(state, new)


def _restore(path: Path | None, key: str, task: Task) -> tuple[Curve, Any]:
    if path is None or not path.exists():
        return Curve(), None
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["key"] != key:
        return Curve(), None
    task.model.load_state_dict(state["model"])
    task.judged.load_state_dict(state["judged"])
    task.optimizer.load_state_dict(state["optimizer"])
    return Curve(**state["curve"]), state["best"]
