"""Tables 5, 6 and 7 of MetaKAN (ICML 2025): fully connected KANs on six image data sets.

    python -m recipes.images_fc --list --profile full
    python -m recipes.images_fc --only 'fashion-mnist-32-G5-*'          # one cell, 3 seeds
    python -m recipes.images_fc --only 'collapse-*'                     # does training collapse?

B-spline KAN (G = 3, 5, 10), FastKAN (6, 8, 13 centres) and Wav-KAN (three wavelets), each as it is
and converted with one prompt number an edge; two depths. docs/images_fc.md lists what differs from
the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from recipes import cli
from recipes.data import COLOUR
from recipes.images_run import INPUTS, SMOKE_IMAGES, Settings, classes, images_model, images_task
from recipes.images_settings import (
    FAIR_NOTES,
    METAKAN,
    NOTES,
    PAPER_NOTES,
    SPLINES,
    TUNED,
    TUNED_NOTES,
    USUAL,
)
from recipes.job import Job, Place, Profile, Protocol, Task
from recipes.paper import Cell, cell

__all__ = ["grid", "main", "model", "task"]

EPOCHS: dict[Profile, int] = {
    "smoke": 2,
    "cpu": 5,
    "full": 50,
}  # the paper names none; its README 50
LONGER = 4  # times the epochs, in variants: after 5 of them wavelets still improve
COLLAPSE_EPOCHS: dict[Profile, int] = {
    "smoke": 1,
    "cpu": 2,
    "full": 2,
}  # shows in hundreds of steps
SEEDS: dict[Profile, int] = {"smoke": 1, "cpu": 3, "full": 5}
LABELS = {  # the paper's names
    "fashion-mnist": "FMNIST",
    "mnist": "MNIST",
    "kmnist": "KMNIST",
    "svhn": "SVHN",
    "cifar-10": "CIFAR-10",
    "cifar-100": "CIFAR-100",
}
HIDDEN = ((32,), (32, 32))
# Columns of the three tables, the middle ones first.
BASIS = {
    "T5": ("G5", "G3", "G10"),
    "T6": ("c8", "c6", "c13"),
    "T7": ("MexicanHat", "Morlet", "DoG"),
}
MODELS = {
    "T5": ("KAN", "MetaKAN"),
    "T6": ("FastKAN", "MetaFastKAN"),
    "T7": ("WavKAN", "MetaWavKAN"),
}
WAVELETS = {"DoG": "dog", "Morlet": "morlet", "MexicanHat": "mexican_hat"}


def base_options(table: str, basis: str, meta: bool, protocol: Protocol) -> dict[str, Any]:
    """Options of the network; under ``fair`` plain and Meta model have the same."""
    # What the Meta models of the paper's counts do not have.
    lean = meta and protocol == "paper"
    if table == "T5":
        return {**SPLINES, "grid_size": int(basis[1:]), "bias": not lean}
    if table == "T6":
        return {"num_grids": int(basis[1:]), "base_bias": not lean}
    return {"wavelet_type": WAVELETS[basis], "unused_weight": False}


def convert_arguments(printed: Cell, protocol: Protocol) -> dict[str, Any]:
    """Arguments of ``kanmeta.convert`` for a cell of a Meta model."""
    arguments = {**printed.convert, "init": "paper" if protocol == "paper" else "match"}
    if printed.row.startswith("T7"):  # up to 1024 hidden units an edge: a third of the time
        arguments["execution"] = "regenerate"
    return arguments


def settings_of(printed: Cell, protocol: Protocol) -> Settings:
    """How the model of a cell is built and trained."""
    table, _, _, basis = printed.row.split("|")
    meta = printed.model.startswith("Meta")
    settings = replace(
        USUAL[printed.model],
        options=base_options(table, basis, meta, protocol),
        convert=convert_arguments(printed, protocol) if meta else None,
    )
    # KAN's own, above, was found on the test set.
    return replace(settings, weight_decay=1e-4, prompt_weight_decay=1e-4 if meta else None)


def _job(
    printed: Cell,
    dataset: str,
    hidden: tuple[int, ...],
    protocol: Protocol,
    profile: Profile,
    seed: int,
) -> Job:
    basis = printed.row.rpartition("|")[2]
    name = f"{dataset}-{'-'.join(map(str, hidden))}-{basis}-{printed.model.lower()}"
    config: Mapping[str, Any] = {
        "dataset": dataset,
        "widths": widths(dataset, hidden),
        "settings": asdict(settings_of(printed, protocol)),
        "limit": SMOKE_IMAGES if profile == "smoke" else None,
    }
    return Job(
        "images_fc",
        name,
        printed.row,
        printed.model,
        protocol,
        profile,
        seed,
        EPOCHS[profile],
        config,
    )


def widths(dataset: str, hidden: tuple[int, ...]) -> list[int]:
    """Of the network; images in colour come at 28 x 28 as well."""
    return [3 * INPUTS if dataset in COLOUR else INPUTS, *hidden, classes(dataset)]


def collapse(protocol: Protocol, profile: Profile) -> list[Job]:
    """``convert``'s defaults over a wide range of learning rates, sizes of prompts and seeds."""
    rates = list(product((1e-3, 3e-3, 1e-2), (1e-4, 3e-4, 1e-3)))
    rates.sort(key=lambda pair: (pair[0] == 3e-3) + (pair[1] == 3e-4))  # extremes first
    if profile == "smoke":
        rates = rates[:1]
    jobs = []
    for (prompt_lr, meta_lr), dim_z, seed in product(rates, (1, 2, 4), range(SEEDS[profile])):
        convert = {"dim_z": dim_z}
        settings = replace(METAKAN, convert=convert, prompt_lr=prompt_lr, meta_lr=meta_lr)
        name = f"collapse-z{dim_z}-prompts{prompt_lr:g}-meta{meta_lr:g}"
        config = {
            "dataset": "fashion-mnist",
            "widths": widths("fashion-mnist", (32,)),
            "settings": asdict(settings),
            "limit": SMOKE_IMAGES if profile == "smoke" else None,
        }
        epochs = COLLAPSE_EPOCHS[profile]
        jobs.append(Job("images_fc", name, "", "MetaKAN", protocol, profile, seed, epochs, config))
    return jobs


def grid(protocol: Protocol, profile: Profile) -> list[Job]:
    """Every cell of Tables 5 to 7, those first that most people look at, then ``collapse``."""
    if profile == "smoke":
        cells = [("fashion-mnist", (32,), "T5", "G5"), ("mnist", (32, 32), "T6", "c6")]
        cells += [("fashion-mnist", (32,), "T7", "DoG"), ("cifar-10", (32,), "T5", "G3")]
    else:
        cells = [
            (dataset, hidden, table, BASIS[table][column])
            for column, hidden, dataset, table in product(range(3), HIDDEN, LABELS, BASIS)
        ]
    jobs = [
        _job(
            cell(f"{table}|{LABELS[dataset]}|{','.join(map(str, hidden))}|{basis}", model),
            dataset,
            hidden,
            protocol,
            profile,
            seed,
        )
        for dataset, hidden, table, basis in cells
        for seed, model in product(range(SEEDS[profile]), MODELS[table])
    ]
    variants: list[Job] = []
    if (protocol, profile) == ("fair", "cpu"):  # full has epochs enough
        variants = [replace(job, epochs=LONGER * job.epochs, variant="longer") for job in jobs]
        variants += [tuned(job) for job in variants if job.model in TUNED]
    return jobs + collapse(protocol, profile) + variants


def tuned(job: Job) -> Job:
    """The same with the settings of variant "tuned"."""
    settings = dict(job.config["settings"])
    for name, value in TUNED[job.model].items():
        settings[name] = {**settings[name], **value} if isinstance(value, dict) else value
    return replace(job, variant="tuned", config={**job.config, "settings": settings})


model = images_model


def task(job: Job, place: Place) -> Task:
    """See :class:`recipes.job.Task`."""
    notes = FAIR_NOTES if job.protocol == "fair" else PAPER_NOTES
    return images_task(job, place, NOTES + (TUNED_NOTES if job.variant == "tuned" else notes))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    cli.run("images_fc", __doc__ or "", grid, argv, has_precision=True)


if __name__ == "__main__":
    main()
