"""Training a classifier on images that live on the device, resumable after every epoch."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn

from recipes.data import Images

__all__ = ["Curve", "Pixels", "accuracy", "fit", "one_thread"]


@dataclass(frozen=True)
class Pixels:
    """Training and test images as one tensor on one device; batches are made there.

    Attributes:
        values: uint8, ``(train + test, pixels of an image)``.
        labels: int64, ``(train + test,)``.
        train: how many of them, from the start, are for training.
        mean, std: of all training pixels, 0 to 255.
    """

    values: Tensor
    labels: Tensor
    train: int
    mean: float
    std: float

    @classmethod
    def of(cls, images: Images, device: torch.device | str = "cpu") -> "Pixels":
        """Put ``images`` on ``device``."""
        values = torch.cat([images.train_images, images.test_images]).flatten(1)
        labels = torch.cat([images.train_labels, images.test_labels])
        train = len(images.train_images)
        # From the histogram: exact, and without a copy of the data as floating-point numbers.
        share = values[:train].flatten().bincount(minlength=256).double() / values[:train].numel()
        level = torch.arange(256).double()
        mean = float((share * level).sum())
        std = math.sqrt(float((share * (level - mean).square()).sum()))
        return cls(values.to(device), labels.to(device), train, mean, std)

    def inputs(self, rows: Tensor | slice) -> Tensor:
        """Images ``rows`` with mean 0 and standard deviation 1: float32, ``(N, pixels)``."""
        return self.values[rows].float().sub_(self.mean).div_(self.std)


@dataclass
class Curve:
    """What every epoch gave: mean training loss (None: not finite) and test accuracy in %."""

    train_loss: list[float | None] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums are rounded in one order on every machine, busy or not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def accuracy(model: nn.Module, data: Pixels, batch: int = 1000) -> float:
    """Share of the test images that ``model`` gets right, in %."""
    was_training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    with torch.no_grad():
        for start in range(data.train, len(data.labels), batch):
            rows = slice(start, start + batch)
            right += (model(data.inputs(rows)).argmax(1) == data.labels[rows]).sum()
    model.train(was_training)
    return 100 * int(right) / (len(data.labels) - data.train)


def fit(
    model: nn.Module,
    data: Pixels,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch: int,
    seed: int,
    on_epoch: Callable[[int], object] = lambda count: None,
    resume: Path | None = None,
    key: str = "",
) -> Curve:
    """Train with cross-entropy and a cosine schedule that ends at 0, step by step.

    Args:
        model, optimizer: on the device of ``data``; changed in place.
        data: training and test images.
        epochs, batch: how long, and rows a step; the last step of an epoch may have fewer.
        seed: of the order of the images.
        on_epoch: called with the number of epochs that have come to an end since the last call.
        resume: a file that holds the state after the last finished epoch. If it exists, training
            goes on from there as if it had never stopped, bit for bit on one thread of a CPU.
        key: what the state belongs to; a file with another key is ignored and overwritten.
    """
    steps = math.ceil(data.train / batch)
    schedule = CosineLRScheduler(optimizer, t_initial=epochs * steps, t_in_epochs=False)
    curve = _restore(resume, key, model, optimizer)
    on_epoch(len(curve.test_accuracy))
    for epoch in range(len(curve.test_accuracy), epochs):
        start = time.perf_counter()
        total = torch.zeros((), device=data.labels.device)
        batches = torch.split(_order(data, seed, epoch), batch)
        for step, rows in enumerate(batches, start=epoch * steps):
            schedule.step_update(step)
            loss = F.cross_entropy(model(data.inputs(rows)), data.labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.detach() * len(rows)
        mean = float(total) / data.train
        curve.train_loss.append(mean if math.isfinite(mean) else None)
        curve.test_accuracy.append(accuracy(model, data))
        curve.seconds += time.perf_counter() - start
        if resume is not None:
            _keep(resume, key, model, optimizer, curve)
        on_epoch(1)
    return curve


def _order(data: Pixels, seed: int, epoch: int) -> Tensor:
    """Order of the training images: a function of seed and epoch, so no state has to be kept."""
    generator = torch.Generator().manual_seed(seed * 10_000 + epoch)
    return torch.randperm(data.train, generator=generator).to(data.labels.device)


def _keep(
    path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, curve: Curve
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "key": key,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "curve": asdict(curve),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _restore(
    path: Path | None, key: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Curve:
    if path is None or not path.exists():
        return Curve()
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["key"] != key:
        return Curve()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Curve(**state["curve"])
