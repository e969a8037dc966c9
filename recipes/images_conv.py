"""Tables 3 and 9 of MetaKAN (ICML 2025): convolutional KANs on MNIST, CIFAR-10 and CIFAR-100.

    python -m recipes.images_conv --list --profile full
    python -m recipes.images_conv --only '4L-cifar-10-*' --data-root cifar10.npz
    accelerate launch -m recipes.images_conv --profile full --precision bf16

Four kinds of layers, 4 and 8 of them; Table 9 varies the size of prompts and the number of
meta-learners. docs/recipes/images_conv.md lists what differs from the paper.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes import cli
from recipes.data import COLOUR
from recipes.images_run import Settings, classes, images_model, images_task
from recipes.job import Job, Place, Profile, Protocol, Task
from recipes.models import CONVOLUTIONS
from recipes.paper import Cell, cell, cells
from recipes.training import Augment, Pixels

__all__ = ["convert_arguments", "grid", "main", "model", "task"]

EPOCHS: dict[Profile, int] = {"smoke": 1, "cpu": 5, "full": 50}  # the paper's README: 50
IMAGES: dict[Profile, int | None] = {"smoke": 16, "cpu": 4000, "full": None}
SEEDS: dict[Profile, int] = {"smoke": 1, "cpu": 3, "full": 3}
DATASETS = {"mnist": "MNIST", "cifar-10": "CIFAR-10", "cifar-100": "CIFAR-100"}
BATCH = 128  # the paper's README; its code has 64
SHIFT = 4  # pixels
CLUSTERS_FOUND = 6  # the 8-layer network has so many different numbers of output channels

NOTES = (
    "Channels and strides are those that the printed counts and the released code imply; the "
    "paper's text names others.",
    "A prompt belongs to one (output, input, kernel position), as in the paper's Eq. 20; the "
    "released code gives it nine adjacent numbers of the weight, whichever they are.",
    "Baseline and Meta model have batch norm; in the released code they have different norms, and "
    "KALN's base branches differ too.",
    "One AdamW with three groups, all on a cosine schedule; the paper has three optimisers and "
    "exponential decay.",
    "Dropout 0.2 in the layers as in the paper's text, none before the head.",
    "Where the paper counts 7 meta-learners, k-means can find only 6 clusters: here the last two "
    "layers share the seventh.",
)
PAPER_NOTES = ("Rates of prompts, meta-learners and the rest: 1e-4, 1e-3 and 1e-4.",)
FAIR_NOTES = (
    "Rates: 1e-3 for everything but prompts, which have 1e-2; weight decay 1e-5. None was tuned.",
)


def convert_arguments(printed: Cell, protocol: Protocol) -> dict[str, Any]:
    """Arguments of ``kanmeta.convert`` for a cell of a Meta model."""
    convert = printed.convert
    if convert["clusters"] > CLUSTERS_FOUND:
        names = [f"layers.{n}" for n in range(8)]
        last = convert["clusters"] - 1
        convert["clusters"] = [*([name] for name in names[:last]), names[last:]]
    return {**convert, "init": "paper" if protocol == "paper" else "match"}


def settings_of(printed: Cell, depth: int, protocol: Protocol) -> Settings:
    """How the model of a cell is built and trained."""
    meta = printed.model.startswith("Meta")
    fair = protocol == "fair"
    return Settings(
        base=printed.model.removeprefix("Meta"),
        options={"depth": depth, "dropout": 0.2},
        convert=convert_arguments(printed, protocol) if meta else None,
        lr=1e-3 if fair else 1e-4,
        prompt_lr=(1e-2 if fair else 1e-4) if meta else None,
        meta_lr=1e-3 if meta else None,
        weight_decay=1e-5,
        prompt_weight_decay=1e-5 if meta else None,
        batch=BATCH,
    )


def _job(printed: Cell, protocol: Protocol, profile: Profile, seed: int) -> Job:
    table, first, second = printed.row.split("|")
    depth, dataset = (int(first[0]), second) if table == "T3" else (8, "CIFAR-100")
    ours = next(name for name, label in DATASETS.items() if label == dataset)
    what = f"{first}-{ours}" if table == "T3" else f"{first}-{second}"
    config = {
        "dataset": ours,
        "widths": [3 if ours in COLOUR else 1, classes(ours)],
        "settings": asdict(settings_of(printed, depth, protocol)),
        "limit": IMAGES[profile],
    }
    return Job(
        recipe="images_conv",
        name=f"{what}-{printed.model.lower()}",
        row=printed.row,
        model=printed.model,
        protocol=protocol,
        profile=profile,
        seed=seed,
        epochs=EPOCHS[profile],
        config=config,
    )


def grid(protocol: Protocol, profile: Profile) -> list[Job]:
    """Table 3, four layers first, then Table 9."""
    labels = ("CIFAR-10", "MNIST", "CIFAR-100")
    rows = [f"T3|{depth}L|{label}" for depth, label in product((4, 8), labels)]
    pairs = [(row, kind) for row in rows for kind in CONVOLUTIONS]
    ablation = [key for key in cells() if key[0].startswith("T9|")]
    if profile == "smoke":
        pairs, ablation = [(rows[1], "KAGNConv"), (rows[0], "FastKANConv")], []
    wanted = [(row, name) for row, kind in pairs for name in (kind, f"Meta{kind}")] + ablation
    seeds = range(SEEDS[profile])
    return [
        _job(cell(row, model), protocol, profile, seed)
        for (row, model), seed in product(wanted, seeds)
    ]


def augmentation(data: Pixels) -> Augment:
    """Every image shifted by up to 4 pixels and, in colour, mirrored: the paper's flip and crop.

    On the device, a batch at once. torchvision's transforms draw once for a whole batch.
    """
    channels, height, width = data.shape

    def augment(x: Tensor) -> Tensor:
        n, device = len(x), x.device
        padded = F.pad(x.reshape(n, channels, height, width), [SHIFT] * 4)
        top, left = torch.randint(0, 2 * SHIFT + 1, (2, n, 1, 1), device=device)
        rows = top + torch.arange(height, device=device).view(1, -1, 1)
        columns = left + torch.arange(width, device=device)
        if channels == 3:
            mirrored = torch.rand(n, 1, 1, device=device) < 0.5
            columns = torch.where(mirrored, columns.flip(2), columns)
        image = torch.arange(n, device=device).view(-1, 1, 1)
        return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2).flatten(1)

    return augment


model = images_model


def task(job: Job, place: Place) -> Task:
    """See :class:`recipes.job.Task`."""
    notes = NOTES + (FAIR_NOTES if job.protocol == "fair" else PAPER_NOTES)
    return images_task(job, place, notes, shaped=True, augment=augmentation)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    cli.run("images_conv", __doc__ or "", grid, argv, has_precision=True)


if __name__ == "__main__":
    main()
