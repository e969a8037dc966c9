"""A vision transformer of timm whose MLPs are KAN layers, as it is and converted. Not in the paper.

python -m recipes.vit --only 'fashion-mnist-*'
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from recipes import cli
from recipes.data import COLOUR
from recipes.images_conv import augmentation
from recipes.images_run import SMOKE_IMAGES, Settings, classes, images_model, images_task
from recipes.job import Job, Place, Profile, Protocol, Task

__all__ = ["grid", "main", "model", "task"]

EPOCHS: dict[Profile, int] = {"smoke": 1, "cpu": 5, "full": 100}
IMAGES: dict[Profile, int | None] = {"smoke": SMOKE_IMAGES, "cpu": 8000, "full": None}
SEEDS: dict[Profile, int] = {"smoke": 1, "cpu": 3, "full": 3}
SIZES: dict[Profile, dict[str, int]] = {
    "smoke": {"dim": 16, "depth": 1},
    "cpu": {"dim": 64, "depth": 4},
    "full": {"dim": 192, "depth": 12},
}
DATASETS = ("fashion-mnist", "cifar-10")
MIXUP = 0.2  # few pairs are mixed half and half
AVERAGE = 0.999  # at most: it rises with the steps, to 0.978 in profile cpu's 315
NOTES = (
    "Not in the paper. Meta-learners of width 32, one for all layers; everything else is the same "
    "for both models: AdamW 1e-3, prompts 1e-2, weight decay 0.05, cosine schedule, mixup, and a "
    "running average of the parameters, which is what is judged.",
)


def _job(dataset: str, meta: bool, protocol: Protocol, profile: Profile, seed: int) -> Job:
    settings = Settings(
        base="vit",
        options={"size": 32 if dataset in COLOUR else 28, **SIZES[profile]},
        convert={"clusters": 1, "dim_z": 1, "hidden": 32} if meta else None,
        lr=1e-3,
        prompt_lr=1e-2 if meta else None,
        meta_lr=1e-3 if meta else None,
        weight_decay=0.05,
        prompt_weight_decay=1e-4 if meta else None,
        batch=128,
    )
    config: dict[str, Any] = {
        "dataset": dataset,
        "widths": [3 if dataset in COLOUR else 1, classes(dataset)],
        "settings": asdict(settings),
        "limit": IMAGES[profile],
        "mixup": MIXUP,
        "average": AVERAGE,
    }
    kind = "MetaViT" if meta else "ViT"
    name = f"{dataset}-{kind.lower()}"
    return Job("vit", name, "", kind, protocol, profile, seed, EPOCHS[profile], config)


def grid(protocol: Protocol, profile: Profile) -> list[Job]:
    """Both models on both data sets."""
    datasets = DATASETS[:1] if profile == "smoke" else DATASETS
    return [
        _job(dataset, meta, protocol, profile, seed)
        for dataset, seed, meta in product(datasets, range(SEEDS[profile]), (False, True))
    ]


model = images_model


def task(job: Job, place: Place) -> Task:
    """See :class:`recipes.job.Task`."""
    return images_task(job, place, NOTES, shaped=True, augment=augmentation)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    cli.run("vit", __doc__ or "", grid, argv, has_library=False, has_precision=True)


if __name__ == "__main__":
    main()
