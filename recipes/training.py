"""Image classification with all images on the device, batches and augmentation made there."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn

from recipes.data import Images
from recipes.engine import Engine

__all__ = ["Pixels", "accuracy", "fit", "one_thread", "split_order", "train_epoch"]

SPLIT_SEED = 2025  # one split of the training images for all runs, whatever their seed
Augment = Callable[[Tensor], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images, labels) -> (mixed images, probabilities of the classes)."""


@dataclass(frozen=True)
class Pixels:
    """Training, validation and test images as one tensor on one device, in this order.

    Attributes:
        values: uint8, ``(train + validation + test, pixels of an image)``; of images in colour
            first all red ones.
        labels: int64, ``(train + validation + test,)``.
        train: how many of them, from the start, are for training.
        validation: how many come next; they are training images that are held out.
        mean, std: of the training pixels, 0 to 255, ``(1,)`` or, in colour, ``(pixels,)``.
        shape: of an image, ``(channels, height, width)``.
    """

    values: Tensor
    labels: Tensor
    train: int
    validation: int
    mean: Tensor
    std: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        images: Images,
        device: torch.device | str = "cpu",
        validation: int = 0,
        limit: int | None = None,
    ) -> "Pixels":
        """Put ``images`` on ``device``.

        Args:
            images: what.
            device: torch's name of it.
            validation: how many training images to hold out. Which ones never changes.
            limit: use at most so many training images, and as many test images.
        """
        train, labels = images.train_images, images.train_labels
        if validation or limit:
            order = split_order(len(train))
            order = order[: None if limit is None else limit + validation]
            train, labels = train[order], labels[order]
        test, count = slice(limit), len(train) - validation
        grey = train.dim() == 3
        shape = (1 if grey else train.shape[1], train.shape[-2], train.shape[-1])
        values = torch.cat([train, images.test_images[test]]).flatten(1)
        mean, std = _moments(values[:count].reshape(-1, *shape))
        if not grey:
            mean, std = (m.repeat_interleave(shape[1] * shape[2]) for m in (mean, std))
        return cls(
            values.to(device),
            torch.cat([labels, images.test_labels[test]]).to(device),
            count,
            validation,
            mean.to(device),
            std.to(device),
            shape,
        )

    def part(self, name: str) -> slice:
        """Rows of ``"train"``, ``"validation"`` or ``"test"`` images."""
        first, second = self.train, self.train + self.validation
        return {
            "train": slice(0, first),
            "validation": slice(first, second),
            "test": slice(second, len(self.labels)),
        }[name]

    def inputs(self, rows: Tensor | slice) -> Tensor:
        """Images ``rows`` with mean 0 and standard deviation 1: float32, ``(N, pixels)``."""
        return self.values[rows].float().sub_(self.mean).div_(self.std)


def split_order(number: int) -> Tensor:
    """The order in which ``number`` training images are divided, the same in all runs."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(SPLIT_SEED))


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images: float32, ``(channels,)``."""
    found = []
    level = torch.arange(256).double()
    for channel in images.unbind(1):
        # From the histogram: exact, and without a copy of the data as floating-point numbers.
        share = channel.flatten().bincount(minlength=256).double() / channel.numel()
        mean = (share * level).sum()
        found.append((mean, (share * (level - mean).square()).sum().sqrt()))
    means, stds = zip(*found, strict=True)
    return torch.stack(means).float(), torch.stack(stds).float()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums are rounded in one order on every machine, busy or not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def accuracy(model: nn.Module, data: Pixels, part: str = "test", batch: int = 1000) -> float:
    """Share of the images of ``part`` that ``model`` gets right, in %."""
    was_training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    rows = torch.arange(len(data.labels), device=data.labels.device)[data.part(part)]
    with torch.no_grad():
        for some in torch.split(rows, batch):
            right += (model(data.inputs(some)).argmax(1) == data.labels[some]).sum()
    model.train(was_training)
    return 100 * int(right) / len(rows)


def train_epoch(
    model: nn.Module,
    data: Pixels,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: int,
    epochs: int,
    batch: int,
    seed: int,
    augment: Augment | None = None,
    mix: Mix | None = None,
    engine: Engine | None = None,
    after_step: Callable[[int], object] = lambda step: None,
) -> float:
    """Train for one of ``epochs`` with cross-entropy and a cosine schedule that ends at 0.

    The order of images and the rates are functions of seed and epoch, so no state has to be kept.

    Args:
        model, optimizer: on the device of ``data``; changed in place.
        data: images.
        epoch: number, from 0.
        epochs: how many there will be; the schedule needs it.
        batch: rows a step; the last step of an epoch may have fewer.
        seed: of the order of the images.
        augment: what is done to a batch of inputs, ``(N, pixels)``.
        mix: what is done to it and its labels afterwards.
        engine: precision and processes; default: one process, float32.
        after_step: called with the number of every step that is done, counted through all epochs.

    Returns:
        The mean loss.
    """
    engine = engine or Engine(str(data.labels.device))
    steps = math.ceil(data.train / batch)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=epochs * steps,
        t_in_epochs=False,
        initialize="initial_lr" not in optimizer.param_groups[0],  # the first epoch's rates
    )
    generator = torch.Generator().manual_seed(seed * 10_000 + epoch)
    order = torch.randperm(data.train, generator=generator).to(data.labels.device)
    total = torch.zeros((), device=data.labels.device)
    for step, rows in enumerate(torch.split(order, batch), start=epoch * steps):
        schedule.step_update(step)
        rows = engine.share(rows)
        x, target = data.inputs(rows), data.labels[rows]
        x = x if augment is None else augment(x)
        x, target = (x, target) if mix is None else mix(x, target)
        with engine.autocast():
            loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        engine.backward(loss)
        optimizer.step()
        after_step(step)
        total += loss.detach() * len(rows)
    return float(engine.sum(total)) / data.train


def fit(
    model: nn.Module,
    data: Pixels,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch: int,
    seed: int,
    on_epoch: Callable[[int], object] = lambda count: None,
) -> float:
    """Train for all epochs, in one go; seconds it took. See :func:`train_epoch`."""
    start = time.perf_counter()
    for epoch in range(epochs):
        train_epoch(model, data, optimizer, epoch=epoch, epochs=epochs, batch=batch, seed=seed)
        on_epoch(1)
    return time.perf_counter() - start
