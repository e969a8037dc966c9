"""Tables 2 and 4 of MetaKAN (ICML 2025): fitting functions with LBFGS.

    python -m recipes.functions --list
    python -m recipes.functions --only 'f1-n10-*'            # Table 4, one cell
    python -m recipes.functions --only 'I.*' --protocol paper  # Table 2 as the paper describes it

An epoch is ten iterations of LBFGS on all training points. docs/recipes/functions.md lists what
differs from the paper.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import torch
from torch import nn

from recipes import cli
from recipes.equations import points
from recipes.job import Job, Place, Profile, Protocol, Task
from recipes.models import build
from recipes.paper import Cell, cell, cells
from recipes.regression import regression

__all__ = [
    "convert_arguments",
    "grid",
    "main",
    "model",
    "numbers",
    "task",
    "wider_arguments",
]

EPOCHS: dict[Profile, int] = {"smoke": 2, "cpu": 10, "full": 20}  # the released notebooks: 12, 20
POINTS: dict[Profile, int] = {"smoke": 100, "cpu": 1000, "full": 1000}  # the released code's
SEEDS: dict[Profile, int] = {"smoke": 1, "cpu": 3, "full": 5}
SIZES = (10, 20, 50, 100, 500, 1000)
HIDDEN = dict(zip(SIZES, (8, 16, 32, 32, 64, 64), strict=True))  # Table 4's, by the paper's text
EQUATION_HIDDEN = 32  # Table 2's, the smaller of the two in the paper's text
WIDER = 1.6  # times the inner nodes, and at least one more, in variant "wider" of Table 2

NOTES = (
    "Epochs of ten LBFGS iterations, learning rate 1, strong Wolfe, history 10; the paper does not "
    "say how many iterations, the released notebooks have 120 and 200 in all.",
    "The grid is fixed, as in the notebooks; the paper does not say whether it was adapted.",
    "Values are mean squared errors; the released code keeps their square root.",
    "Training, validation and test points are drawn apart, uniformly from the function's ranges.",
)
PAPER_NOTES = (
    "Meta-learner as wide as the printed count needs where a rule was found, else as in the text; "
    "prompts and meta-learner start as Xavier with zero biases.",
)
FAIR_NOTES = (
    "Meta-learner as wide as the text says, but no wider than keeps the model at or below the "
    "number of parameters of the KAN.",
    "Both models learn values of mean 0 and variance 1 over the training points; errors are those "
    "of the values as they are. Else Table 4's f2 leaves the grid at once and nothing is learnt.",
)


def convert_arguments(printed: Cell, protocol: Protocol) -> dict[str, Any]:
    """Arguments of ``kanmeta.convert`` for the Meta model of a cell."""
    table, _, size = printed.row.split("|")
    hidden = HIDDEN[int(size[1:])] if table == "T4" else EQUATION_HIDDEN
    if protocol == "paper":
        convert = printed.convert if printed.rule and table == "T4" else {"hidden": hidden}
        return {**convert, "init": "paper"}
    w = printed.dim_w if table == "T4" else _intervals(printed.row) + 4
    widest = _widest(printed.widths, w, numbers(printed.widths, w))
    return {"hidden": max(2, min(hidden, widest)), "init": "match"}


def numbers(widths: Sequence[int], w: int) -> int:
    """Parameters of a KAN with ``w`` coefficients an edge and output biases."""
    return sum(a * b * w + b for a, b in pairwise(widths))


def _widest(widths: Sequence[int], w: int, allowed: int) -> int:
    """Most hidden units that keep a converted model at or below ``allowed`` parameters.

    It has E + h (2 + w) + w and the biases: one number an edge.
    """
    return (allowed - numbers(widths, 1) - w) // (w + 2)


def wider_arguments(widths: Sequence[int], w: int) -> tuple[list[int], dict[str, Any]]:
    """Widths of a network with :data:`WIDER` times the inner nodes, and how it is converted.

    It has no more parameters than the KAN of ``widths``, and a smooth meta-learner.
    """
    inner = [max(n + 1, round(WIDER * n)) for n in widths[1:-1]]
    wide = [widths[0], *inner, widths[-1]]
    hidden = min(EQUATION_HIDDEN, _widest(wide, w, numbers(widths, w)))
    return wide, {"hidden": hidden, "activation": "silu", "init": "match"}


def _intervals(row: str) -> int:
    """G of a row: Table 4 does not say it, its counts need 5."""
    last = row.rpartition("|")[2]
    return int(last[1:]) if last.startswith("G") else 5


def _job(printed: Cell, protocol: Protocol, profile: Profile, seed: int) -> Job:
    _, name, size = printed.row.split("|")
    config = {
        "function": name,
        "widths": printed.widths,
        "grid": _intervals(printed.row),
        "points": POINTS[profile],
        "convert": convert_arguments(printed, protocol) if "Meta" in printed.model else None,
        "standardise": protocol == "fair",
    }
    stem = f"{name}-{size}-{printed.model.lower()}"
    epochs = EPOCHS[profile]
    return Job(
        "functions", stem, printed.row, printed.model, protocol, profile, seed, epochs, config
    )


def grid(protocol: Protocol, profile: Profile) -> list[Job]:
    """Every cell of Table 4, then of Table 2 with G = 5, then with G = 20; cheap ones first."""
    rows: list[str] = [f"T4|{f}|n{n}" for n, f in product(SIZES, ("f1", "f2", "f3"))]
    for size in ("G5", "G20"):
        rows += [row for row, m in cells() if row.startswith("T2|") and m == "KAN" and size in row]
    if profile == "smoke":
        rows = ["T4|f2|n10", "T2|I.12.11|G5", "T2|I.6.20|G20"]
    pairs = list(product(range(SEEDS[profile]), ("KAN", "MetaKAN")))
    jobs = [
        _job(cell(row, model), protocol, profile, seed) for row in rows for seed, model in pairs
    ]
    jobs += [_appendix_b(model, protocol, profile, seed) for seed, model in pairs]
    if protocol == "fair":
        wide = [job if job.model == "KAN" else _wider(job) for job in jobs if _is_coarse(job)]
        jobs += [job for job in wide if job.variant]
        jobs += [_second_order(job) for job in wide]
    return jobs


def _is_coarse(job: Job) -> bool:
    """Of Table 2, with G = 5."""
    return job.row.endswith("|G5")


def _wider(job: Job) -> Job:
    """Not in the paper: as many numbers as the KAN of the cell, in a wider converted network."""
    widths, convert = wider_arguments(job.config["widths"], job.config["grid"] + 4)
    config = {**job.config, "widths": widths, "convert": convert}
    return replace(job, config=config, variant="wider")


def _second_order(job: Job) -> Job:
    """Not in the paper: the same by Levenberg and Marquardt's method, a step for an iteration."""
    return replace(job, config={**job.config, "second_order": True}, variant="second-order")


def _appendix_b(kind: str, protocol: Protocol, profile: Profile, seed: int) -> Job:
    """The network of Figures 9 and 10; the paper gives no width of its meta-learner."""
    config = {
        "function": "appendix-b",
        "widths": [4, 5, 5, 1],
        "grid": 5,
        "points": POINTS[profile],
        "convert": {"hidden": EQUATION_HIDDEN} if kind == "MetaKAN" else None,
        "standardise": protocol == "fair",
    }
    name, epochs = f"appendix-b-{kind.lower()}", EPOCHS[profile]
    return Job("functions", name, "", kind, protocol, profile, seed, epochs, config)


def model(job: Job) -> nn.Module:
    """The model of a job, on the CPU, with its first values: float64."""
    config = job.config
    options = {"grid_size": config["grid"], "enable_standalone_scale_spline": False, "bias": True}
    widths = tuple(config["widths"])
    return build(
        "kan", widths, options, config["convert"], job.seed, torch.float64, library=job.library
    )


def task(job: Job, place: Place) -> Task:
    """See :class:`recipes.job.Task`."""
    config = job.config
    net = model(job).to(place.device)
    # Test points are the same for every seed; those to train on are not.
    data = {
        part: tuple(
            t.to(place.device) for t in points(config["function"], config["widths"][0], n, seed)
        )
        for part, n, seed in (
            ("train", config["points"], 1000 + job.seed),
            ("validation", config["points"], 2000 + job.seed),
            ("test", config["points"], 3000),
        )
    }
    values = data["train"][1]
    shift, scale = (values.mean(), values.std()) if config["standardise"] else (0.0, 1.0)
    return regression(
        net,
        data,
        shift=shift,
        scale=scale,
        second_order=config.get("second_order", False),
        source={"name": config["function"], "points": config["points"]},
        notes=NOTES + (FAIR_NOTES if job.protocol == "fair" else PAPER_NOTES),
        more=lambda: {"target_variance": float(data["test"][1].var(correction=0))},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    cli.run("functions", __doc__ or "", grid, argv)


if __name__ == "__main__":
    main()
