"""What distilling is to reach, beside what the result files say: the table of docs/distilling.md.

python -m recipes.distill_aims           # rewrites the table between the markers
python -m recipes.distill_aims --check   # exit status 1 if it is not what the result files give
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.readme_tables import markdown
from recipes.results import Result
from recipes.section import refresh_section

__all__ = ["AIMS", "Aim", "main", "table"]

Point = tuple[float | None, float | None]
"""Points of accuracy lost, and how many times smaller the file is, if the aim is about files. No
points where no file is small enough."""


@dataclass(frozen=True)
class Aim:
    """At most so many points of test accuracy lost, in a file so many times smaller.

    Attributes:
        what: for people.
        where: fields of the results that it is about.
        lost: from the teacher; of files from the better of teacher and model before rounding.
        smaller: times, than the float32 file of the unconverted network; None: no matter.
    """

    what: str
    where: Mapping[str, Any]
    lost: float
    smaller: float | None = None

    def reached(self, result: Result) -> Point | None:
        """What a result has; of the files that are small enough the largest, tuned if it was.

        None for a result that the aim is not about.
        """
        known = {"grid": 5, "network": "", **result}
        if any(known[field] != value for field, value in self.where.items()):
            return None
        teacher, model = result["teacher"]["test_accuracy"], result["test_accuracy"]
        if self.smaller is None:
            return teacher - model, None
        best, before, files = max(teacher, model), result["teacher"]["bytes"], []
        for file in result["files"]:
            tuned = "tuned_" if "tuned_bytes" in file else ""
            lost = best - file[f"{tuned}{'accuracy' if tuned else 'test_accuracy'}"]
            files.append((lost, before / file[f"{tuned}bytes"]))
        enough = [f for f in files if f[1] >= self.smaller]
        return min(enough, key=lambda f: f[1]) if enough else (None, None)


def _distilled(dim_z: int, data: str, **where: Any) -> dict[str, Any]:
    return {**FASHION, "kind": "distilled", "dim_z": dim_z, "data_used": data, "grid": 5, **where}


FASHION = {"dataset": "fashion-mnist", "network": ""}
CONV = {"dataset": "cifar-10", "network": "KANConv x 4"}
SCRATCH = {**FASHION, "kind": "from scratch", "dim_z": 1}
AIMS = (
    Aim('no data (`"normal"`), `dim_z=4`', _distilled(4, "normal"), 0.5),
    Aim("100 batches, `dim_z=2`", _distilled(2, "100 batches"), 0.2),
    Aim("100 batches, `dim_z=1`", _distilled(1, "100 batches"), 1.0),
    Aim("two epochs, `dim_z=1`", _distilled(1, "2 epochs"), 0.3),
    Aim("G = 5, 70 times smaller", {**SCRATCH, "grid": 5}, 0.1, 70.0),
    Aim("G = 5, 90 times smaller", {**SCRATCH, "grid": 5}, 0.5, 90.0),
    Aim("G = 10, 110 times smaller", {**SCRATCH, "grid": 10}, 0.2, 110.0),
    Aim('KANConv, no data (`"normal"`), `dim_z=4`', _distilled(4, "normal", **CONV), 0.5),
    Aim("KANConv, its images, `dim_z=2`", _distilled(2, "training images", **CONV), 0.2),
    Aim("KANConv, its images, `dim_z=1`", _distilled(1, "training images", **CONV), 1.0),
    Aim("KANConv, its images, `dim_z=1`, 25 epochs", _distilled(1, "training images", **CONV), 0.3),
    Aim("KANConv from scratch, 70 times smaller", {**SCRATCH, **CONV}, 0.5, 70.0),
    Aim(
        "KANConv distilled and trained on, 70 times smaller",
        {**CONV, "kind": "distilled, trained on"},
        0.5,
        70.0,
    ),
)


def table(found: Sequence[Result]) -> str:
    """A Markdown table: a row for each aim, all seeds in it."""
    rows = []
    for aim in AIMS:
        pairs = [(r["seed"], aim.reached(r)) for r in sorted(found, key=lambda r: int(r["seed"]))]
        points = {seed: point for seed, point in pairs if point is not None}
        texts = [f"{seed}: {_text(*point)}" for seed, point in points.items()]
        lost = [None if p[0] is None else round(p[0], 2) for p in points.values()]
        rows.append((aim.what, f"{aim.lost:g}", ", ".join(texts), *_verdict(lost, aim.lost)))
    return markdown(("what", "at most lost", "seed: lost", "mean", ""), rows)


def _text(lost: float | None, smaller: float | None) -> str:
    if lost is None:
        return "no file is small enough"
    return f"{lost:.2f}" + ("" if smaller is None else f" at {smaller:.1f}x")


def _verdict(lost: Sequence[float | None], most: float) -> tuple[str, str]:
    if not lost:
        return "", "not run"
    known = [value for value in lost if value is not None]
    missed = len(lost) - sum(value <= most for value in known)
    mean = f"{statistics.fmean(known):.2f}" if known else ""
    return mean, "met" if not missed else f"**missed** by {missed} of {len(lost)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    refresh_section(argv, "recipes.distill_aims", __doc__, "distilling.md", "aims", table)


if __name__ == "__main__":
    main()
