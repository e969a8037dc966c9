"""Appendix B of MetaKAN (ICML 2025): prune a trained KAN of the real pykan, read a formula off it.

    pip install pykan==0.2.8 matplotlib
    python -m recipes.symbolic

f(x) = exp((sin(pi (x1^2 + x2^2)) + sin(pi (x3^2 + x4^2))) / 2), [4, 5, 5, 1], plain and converted.
Training is the shared loop's (ten LBFGS iterations an epoch); then pykan's own ``prune`` and
``auto_symbolic`` run on the model. docs/recipes/symbolic.md lists what differs from the paper.
"""

import contextlib
import importlib
import io
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import LargerModelWarning
from recipes import cli
from recipes.equations import points
from recipes.job import Job, Place, Profile, Protocol, Task
from recipes.regression import regression

__all__ = ["grid", "main", "model", "task"]

EPOCHS: dict[Profile, int] = {"smoke": 1, "cpu": 10, "full": 20}
POINTS: dict[Profile, int] = {"smoke": 50, "cpu": 1000, "full": 1000}
SEEDS: dict[Profile, int] = {"smoke": 1, "cpu": 3, "full": 5}
LIBRARY = ["x", "x^2", "sin", "exp", "abs"]
NOTES = (
    "The paper gives neither steps, points, thresholds nor the library of functions. Here: "
    "pykan's default thresholds, and x, x^2, sin, exp, abs.",
    "Meta-learner with SiLU and four numbers an edge: LBFGS stops at the kinks of ReLU.",
    "The formula's error is that right after auto_symbolic, without another round of training.",
)


def grid(protocol: Protocol, profile: Profile) -> list[Job]:
    """Plain and converted, every seed."""
    widths = [4, 2, 1] if profile == "smoke" else [4, 5, 5, 1]
    jobs = []
    for seed, meta in product(range(SEEDS[profile]), (False, True)):
        convert = {"hidden": 16, "dim_z": 4, "activation": "silu"} if meta else None
        config = {"widths": widths, "points": POINTS[profile], "convert": convert}
        kind = "MetaKAN" if meta else "KAN"
        name = f"appendix-b-{kind.lower()}"
        epochs = EPOCHS[profile]
        jobs.append(Job("symbolic", name, "", kind, protocol, profile, seed, epochs, config))
    return jobs


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.mkdir(os.path.join(folder, "model"))  # prune writes its log there
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """pykan prints, warns, and writes files where it runs."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _inside(folder),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def model(job: Job) -> nn.Module:
    """The model of a job, on the CPU, with its first values."""
    with _quietly(), torch.random.fork_rng(devices=[]):
        kan = importlib.import_module("kan")  # only if asked for: optional, slow to import
        widths = [*job.config["widths"]]  # pykan changes the list that it is given
        net: nn.Module = kan.KAN(widths, grid=5, k=3, seed=job.seed, auto_save=False, device="cpu")
        if job.config["convert"] is not None:
            warnings.simplefilter("ignore", LargerModelWarning)
            generator = torch.Generator().manual_seed(job.seed)
            kanmeta.convert(net, **job.config["convert"], generator=generator)
    return net


def task(job: Job, place: Place) -> Task:
    """See :class:`recipes.job.Task`."""
    if sys.version_info >= (3, 13):  # before hours of training: it makes local variables with exec
        raise SystemExit(
            "error: pykan 0.2.8's symbolic_formula needs Python 3.12 or older; use one"
        )
    if torch.device(place.device).type != "cpu":
        raise SystemExit("error: symbolic runs on the CPU: leave --device out")
    net: Any = model(job)
    data = {
        part: tuple(t.float() for t in points("appendix-b", 4, job.config["points"], seed))
        for part, seed in (
            ("train", 1000 + job.seed),
            ("validation", 2000 + job.seed),
            ("test", 3000),
        )
    }

    def more() -> dict[str, Any]:
        return formula(net, *data["train"], *data["test"])

    source = {"name": "appendix-b", "points": job.config["points"]}
    return regression(net, data, source=source, notes=NOTES, more=more)


def formula(net: Any, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> dict[str, Any]:
    """Prune a copy, replace its functions by pykan's symbolic ones, and judge the formula.

    Returns:
        ``pruned_widths``, ``formula`` and ``formula_mse`` (None where it is not finite).
    """
    with _quietly():
        net(x)  # pykan prunes by what a forward pass left behind
        small = net.prune()
        small(x)
        small.auto_symbolic(lib=LIBRARY, verbose=0)
        with torch.no_grad():
            error = float((small(x_test) - y_test).square().mean())
        text = str(small.symbolic_formula()[0][0])
    return {
        "pruned_widths": [w[0] if isinstance(w, list) else w for w in small.width],
        "formula": text,
        "formula_mse": error if math.isfinite(error) else None,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    cli.run("symbolic", __doc__ or "", grid, argv, has_library=False)


if __name__ == "__main__":
    main()
