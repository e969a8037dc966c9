"""What a recipe is made of: jobs that are plain data, and the tasks that jobs describe."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["PROFILES", "PROTOCOLS", "Job", "Place", "Profile", "Protocol", "Task"]

Protocol = Literal["fair", "paper"]
Profile = Literal["smoke", "cpu", "full"]
PROTOCOLS: tuple[Protocol, ...] = ("fair", "paper")
PROFILES: tuple[Profile, ...] = ("smoke", "cpu", "full")


@dataclass(frozen=True)
class Job:
    """One training run. All of it is JSON, and all of it goes into the result file.

    Attributes:
        recipe: module of this package that makes its task: ``task(job, place)``.
        name: tells the job apart from others of its recipe, protocol, profile and seed.
        row: what the paper calls the cell, see :mod:`recipes.paper`; may be empty.
        model: as the paper's table calls it.
        protocol: ``fair``: the best epoch on held-out validation data counts, and the test data
            are read once, at the end. ``paper``: the test data are read after every epoch and the
            best epoch counts, as in the paper's released code.
        profile: how large: ``smoke``, ``cpu`` or ``full``.
        seed: of first values, data that are drawn, and the order of batches.
        epochs: rounds of training; after each the job can be killed and goes on there.
        config: what the recipe needs besides.
        variant: what else is done than the protocol says, in a word that stands in the file's name;
            ``"library"``: layers of the real library, see :mod:`recipes.library`, in place of the
            reference layers.
    """

    recipe: str
    name: str
    row: str
    model: str
    protocol: Protocol
    profile: Profile
    seed: int
    epochs: int
    config: Mapping[str, Any]
    variant: str = ""

    @property
    def stem(self) -> str:
        """Name of its files, without the ending."""
        parts = [self.name, self.variant, self.protocol, self.profile, f"s{self.seed}"]
        return ".".join(part for part in parts if part)

    @property
    def library(self) -> bool:
        """Whether the layers are the real library's."""
        return self.variant == "library"

    def content(self) -> dict[str, Any]:
        """Everything, as JSON gives it back."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if not self.variant:
            del content["variant"]  # as in files from before there were any
        return content


@dataclass(frozen=True)
class Place:
    """Where jobs run.

    Attributes:
        data, download: see :func:`recipes.data.load_images`.
        device: torch's name of it.
        precision: ``no`` for float32 as written, or ``bf16`` or ``fp16`` (needs accelerate).
        out: results go to ``out/results/<recipe>``; state of killed runs and trained models to
            ``out/runs/<recipe>``.
        code: :func:`recipes.records.code_state` when the program started.
        compiled: whether ``torch.compile`` fuses what Wav-KAN's layers compute.
    """

    data: tuple[Path, ...]
    download: bool
    device: str
    precision: str
    out: Path
    code: Mapping[str, Any]
    compiled: bool = False

    def result(self, job: Job) -> Path:
        """The result file of ``job``."""
        return self.out / "results" / job.recipe / f"{job.stem}.json"

    def working(self, job: Job, suffix: str) -> Path:
        """A file of ``job`` that is no result."""
        return self.out / "runs" / job.recipe / f"{job.stem}{suffix}"


def _nothing() -> dict[str, Any]:
    return {}


@dataclass
class Task:
    """A model, and how it is trained and judged; :func:`recipes.loop.train` does so.

    Attributes:
        model: on the device of the data.
        optimizer: of its parameters.
        epoch: trains through epoch number ``n`` (from 0) and returns the mean loss.
        score: the metric on ``"validation"`` or ``"test"`` data; must not train.
        loss: of a first batch, for measuring memory; takes the model so that a copy will do.
        metric: what ``score`` gives.
        higher: whether a higher score is better.
        source: where the data are from.
        notes: where this differs from the paper.
        more: further results, asked after training.
        average: running average of the model's parameters, which ``epoch`` updates; if there is
            one it is what ``score`` judges and what is kept, in the model as well.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: Callable[[int], float]
    score: Callable[[str], float]
    loss: Callable[[nn.Module], Tensor]
    metric: str
    higher: bool
    source: Mapping[str, Any]
    notes: tuple[str, ...]
    more: Callable[[], dict[str, Any]] = field(default=_nothing)
    average: nn.Module | None = None

    @property
    def judged(self) -> nn.Module:
        """The average, or else the model."""
        return self.model if self.average is None else self.average
