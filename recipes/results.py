"""Result files, gathered: one entry a cell of the paper, model and protocol, over all seeds."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.execute import number
from recipes.paper import Cell, cells
from recipes.records import read_json

__all__ = [
    "Entries",
    "Entry",
    "Result",
    "by_cell",
    "columns",
    "load",
    "mean_and_spread",
    "symbolic_rows",
    "table_of",
    "vit_rows",
    "winners",
]

Result = Mapping[str, Any]
PREFERRED = ("full", "cpu", "smoke")  # of a cell that was run in several profiles, the first counts


def load(folder: Path) -> list[Result]:
    """All results of a recipe, in the order of their names."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


@dataclass(frozen=True)
class Entry:
    """All seeds of one cell, model and protocol."""

    results: tuple[Result, ...]

    @property
    def values(self) -> list[float]:
        """Those that are finite."""
        return [r["value"] for r in self.results if r["value"] is not None]

    @property
    def mean(self) -> float | None:
        """Over the seeds; None where no run gave a finite value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def parameters(self) -> int:
        """As the paper counts: frozen numbers as well."""
        return int(sum(self.results[0]["parameters"].values()))

    def text(self) -> str:
        """Mean, spread and number of seeds for people."""
        lost = len(self.results) - len(self.values)
        text = f"{mean_and_spread(self.values)} ({len(self.results)})"
        return f"{text}, {lost} not finite" if lost else text


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    if not values:
        return "not finite"
    mean = number(statistics.fmean(values))
    return f"{mean} ± {number_like(statistics.stdev(values), mean)}" if len(values) > 1 else mean


def number_like(value: float, other: str) -> str:
    """``value`` with as many places as ``other``."""
    return f"{value:.1e}" if "e" in other else f"{value:.2f}"


Entries = Mapping[tuple[str, str, str], Entry]


def by_cell(results: Sequence[Result], label: str = "row") -> Entries:
    """Entries by the paper's row (or what else of a job is its ``label``), model and protocol."""
    groups: dict[tuple[str, str, str], dict[str, list[Result]]] = defaultdict(dict)
    for result in results:
        job = result["job"]
        if job[label]:
            kind = ", ".join([job["protocol"], *filter(None, [job.get("variant")])])
            profiles = groups[job[label], job["model"], kind]
            profiles.setdefault(job["profile"], []).append(result)
    return {
        key: Entry(tuple(profiles[min(profiles, key=PREFERRED.index)]))
        for key, profiles in groups.items()
    }


def table_of(number: int) -> list[Cell]:
    """Cells of one of the paper's tables, in its order."""
    return [cell for cell in cells().values() if cell.row.startswith(f"T{number}|")]


def winners(cells: Sequence[Cell], entries: Entries) -> set[tuple[str, str]]:
    """Cell, as :func:`columns` writes it, and model that is better than its counterpart.

    Under protocol fair, by more than the larger of the two standard deviations, and at no seed not
    finite.
    """
    higher = cells[0].metric.startswith("test accuracy")
    found = set()
    for cell in cells:
        name = cell.model.removeprefix("Meta")  # a plain one meets itself: nobody wins
        plain, meta = (entries.get((cell.row, model, "fair")) for model in (name, cell.model))
        if not plain or not meta or min(len(plain.values), len(meta.values)) < 2:
            continue
        change = statistics.fmean(meta.values) - statistics.fmean(plain.values)
        if abs(change) > max(map(statistics.stdev, (plain.values, meta.values))):
            winner, model = (meta, cell.model) if (change > 0) == higher else (plain, name)
            if len(winner.values) == len(winner.results):
                found.add((_label(cell), model))
    return found


def _label(cell: Cell) -> str:
    return cell.row.partition("|")[2].replace("|", ", ")


def columns(cell: Cell, entries: Entries) -> dict[str, str]:
    """Everything that is known of a cell, as text; what was not run says so."""
    found = {p: entries.get((cell.row, cell.model, p)) for p in ("fair", "paper", "last")}
    ours = next((e for e in (found["paper"], found["fair"], found["last"]) if e), None)
    remarks = []
    if ours is not None and ours.parameters != cell.parameters:
        remarks.append(f"count differs by {ours.parameters - cell.parameters:+,}")
    if cell.rule != "label":
        remarks.append("printed count does not follow from the cell")
    for (row, model, kind), entry in entries.items():
        if (row, model) == (cell.row, cell.model) and ", " in kind:
            remarks.append(f"{kind}: {entry.text()}, {entry.parameters:,} parameters")
    if found["last"]:
        remarks.append("last: rates chosen on the test set")
    printed = "none" if cell.value is None else number(cell.value)
    spread = "" if cell.std is None else f" ± {cell.std:.2f}"
    return {
        "cell": _label(cell),
        "model": cell.model,
        "parameters, paper": f"{cell.parameters:,}",
        "parameters": f"{ours.parameters:,}" if ours else "",
        "paper": f"{printed}{spread}",
        "protocol fair": found["fair"].text() if found["fair"] else "not run",
        "protocol paper": found["paper"].text() if found["paper"] else "not run",
        "last epoch": found["last"].text() if found["last"] else "",
        "remarks": "; ".join(remarks),
    }


def symbolic_rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """Of Appendix B: every run, and the mean of every model."""
    rows = []
    for (_, model, kind), entry in by_cell(results, "name").items():
        same = {"model": model, "protocol": kind, "parameters": f"{entry.parameters:,}"}
        rows += [
            {
                **same,
                "seed": str(result["job"]["seed"]),
                "test MSE": number(result["value"]),
                "widths after pruning": ", ".join(map(str, result["pruned_widths"])),
                "MSE of the formula": number(result["formula_mse"]),
            }
            for result in entry.results
        ]
        errors = [r["formula_mse"] for r in entry.results if r["formula_mse"] is not None]
        rows.append(
            {
                **same,
                "seed": "mean",
                "test MSE": mean_and_spread(entry.values),
                "widths after pruning": "",
                "MSE of the formula": mean_and_spread(errors),
            }
        )
    return rows


def vit_rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """Of the vision transformer: a row for a data set and model."""
    return [
        {
            "data": entry.results[0]["job"]["config"]["dataset"],
            "model": model,
            "protocol": kind,
            "parameters": f"{entry.parameters:,}",
            "test accuracy, %": entry.text(),
        }
        for (_, model, kind), entry in by_cell(results, "name").items()
    ]
