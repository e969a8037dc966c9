"""The task of recipes that classify images: data, model, optimiser, augmentation, judging."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn

from recipes.data import CLASSES as CLASSES_OF
from recipes.data import COLOUR, Images, load_images
from recipes.engine import Engine
from recipes.job import Job, Place, Task
from recipes.models import BASES, Settings, build, optimizer
from recipes.reference.wav_kan import KANLinear
from recipes.training import Augment, Mix, Pixels, accuracy, train_epoch

__all__ = [
    "BASES",
    "CLASSES",
    "INPUTS",
    "SMOKE_IMAGES",
    "Settings",
    "images_model",
    "images_task",
    "job_images",
    "mixup",
    "optimizer",
]

INPUTS, CLASSES = 28 * 28, 10  # of MNIST and its like
VALIDATION = 12  # one in so many training images is held out: 5,000 of 60,000
SMOKE_IMAGES = 64


def images_model(job: Job) -> nn.Module:
    """The model of a job, on the CPU, with its first values."""
    settings, widths = Settings(**job.config["settings"]), tuple(job.config["widths"])
    return build(
        settings.base,
        widths,
        settings.options,
        settings.convert,
        job.seed,
        library=job.library,
    )


def images_task(
    job: Job,
    place: Place,
    notes: tuple[str, ...],
    shaped: bool = False,
    augment: Callable[[Pixels], Augment] | None = None,
) -> Task:
    """Make the task of a job whose ``config`` has dataset, widths, settings and limit.

    It may have ``mixup``, the shape of the beta distribution of two images' shares, and
    ``average``, the decay of a running average of the parameters, which is judged and kept then.

    Args:
        job, place: see :class:`Task`.
        notes: where this differs from the paper.
        shaped: whether the model takes ``(N, channels, height, width)``, at the size of the files;
            otherwise it takes flat images, those in colour made 28 x 28 as in the paper.
        augment: makes the augmentation of training images.
    """
    config, settings = job.config, Settings(**job.config["settings"])
    engine = Engine(place.device, place.precision)
    data, source = job_images(job, place, str(engine.device), shaped)
    inner = images_model(job)
    for layer in inner.modules():
        if isinstance(layer, KANLinear):
            layer.compiled = place.compiled
    model = (Shaped(inner, data.shape) if shaped else inner).to(engine.device)
    stepper = optimizer(model, settings)
    wrapped, wrapped_stepper = engine.prepare(model, stepper)
    change = augment(data) if augment is not None else None
    mix = mixup(config["mixup"], data.shape, config["widths"][-1]) if "mixup" in config else None
    ema = None
    if "average" in config:
        ema = ModelEmaV3(model, decay=config["average"], use_warmup=True)

    def epoch(number: int) -> float:
        torch.manual_seed(job.seed * 10_000 + number)  # dropout and augmentation
        return train_epoch(
            wrapped,
            data,
            wrapped_stepper,
            epoch=number,
            epochs=job.epochs,
            batch=settings.batch,
            seed=job.seed,
            augment=change,
            mix=mix,
            engine=engine,
            after_step=lambda step: None if ema is None else ema.update(model, step),
        )

    def loss(net: nn.Module) -> Tensor:
        rows = slice(0, settings.batch)
        return F.cross_entropy(net(data.inputs(rows)), data.labels[rows])

    average = None if ema is None else ema.module
    return Task(
        model=model,
        optimizer=stepper,
        epoch=epoch,
        score=lambda part: accuracy(model if average is None else average, data, part),
        loss=loss,
        metric="test accuracy %",
        higher=True,
        source=source,
        notes=notes,
        average=average,
    )


def mixup(alpha: float, shape: tuple[int, int, int], classes: int) -> Mix:
    """Each image mixed with another of the batch, in shares from a beta distribution of ``alpha``.

    Images are flat, ``shape`` is theirs; draws are torch's global ones.
    """
    from torchvision.transforms.v2 import MixUp  # only here: its import takes a second

    transform = MixUp(alpha=alpha, num_classes=classes)

    def mix(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, target = transform(x.reshape(-1, *shape), labels)
        return images.flatten(1), target

    return mix


class Shaped(nn.Module):
    """A network for images that takes flat ones, as they are kept in one tensor."""

    def __init__(self, net: nn.Module, shape: tuple[int, int, int]) -> None:
        """Put ``net``, which takes ``(N, *shape)``, behind a reshape."""
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, x: Tensor) -> Tensor:
        """``(N, pixels)`` to ``(N, classes)``."""
        y: Tensor = self.net(x.reshape(-1, *self.shape))
        return y


def job_images(
    job: Job, place: Place, device: str, shaped: bool = False
) -> tuple[Pixels, Mapping[str, Any]]:
    """Images as the network of a job sees them, and what they are.

    Args:
        job, place: see :class:`Task`.
        device: where they go.
        shaped: see :func:`images_task`.
    """
    dataset = job.config["dataset"]
    size = 28 if dataset in COLOUR and not shaped else None
    held_out = job.protocol == "fair"
    limit = job.config["limit"]
    return _data(dataset, place.data, place.download, device, size, held_out, limit)


@cache
def _data(
    dataset: str,
    roots: tuple[Path, ...],
    download: bool,
    device: str,
    size: int | None,
    held_out: bool,
    limit: int | None,
) -> tuple[Pixels, Mapping[str, Any]]:
    images = load_images(dataset, roots, download)
    source = {"name": dataset, "sha256": images.fingerprint()}
    if size is not None:
        images = _resized(images, size)
    count = min(len(images.train_images), limit or len(images.train_images))
    validation = max(1, count // VALIDATION) if held_out else 0
    return Pixels.of(images, device, validation, limit), source


def _resized(images: Images, size: int) -> Images:
    from torchvision.transforms.v2 import functional as v2  # only here: its import takes a second

    train, test = (
        torch.cat(
            [v2.resize(some, [size, size], antialias=True) for some in torch.split(part, 4096)]
        )
        for part in (images.train_images, images.test_images)
    )
    return Images(images.name, images.folder, train, images.train_labels, test, images.test_labels)


def classes(dataset: str) -> int:
    """How many there are."""
    return CLASSES_OF[dataset]
