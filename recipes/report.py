"""Tables of README.md from the result files of :mod:`recipes.images_fc`.

python -m recipes.report           # rewrites the tables between the markers
python -m recipes.report --check   # exit status 1 if they are not what the result files give
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.records import REPOSITORY, read_json

__all__ = ["collapse_table", "headline_table", "main", "markdown", "replace_section"]

CHANCE = 10.0  # % of ten classes that are equally frequent
COLLAPSED = 2 * CHANCE  # below: a run that has learnt next to nothing

NAMES = {
    "kan": "B-spline KAN, G=5, k=3",
    "metakan": "converted",
    "fastkan": "FastKAN, 8 centres",
    "metafastkan": "converted",
}
DATASETS = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}

# Tables 5 and 6 of MetaKAN (ICML 2025): parameters, test accuracy in %.
PAPER = {
    ("fashion-mnist", (32,), "kan"): (228_714, 85.59),
    ("fashion-mnist", (32,), "metakan"): (27_968, 87.73),
    ("fashion-mnist", (32,), "fastkan"): (230_362, 87.41),
    ("fashion-mnist", (32,), "metafastkan"): (29_881, 87.93),
    ("fashion-mnist", (32, 32), "kan"): (237_962, 86.12),
    ("fashion-mnist", (32, 32), "metakan"): (28_992, 86.16),
    ("fashion-mnist", (32, 32), "fastkan"): (239_682, 88.71),
    ("fashion-mnist", (32, 32), "metafastkan"): (29_569, 87.92),
    ("mnist", (32,), "kan"): (228_714, 93.60),
    ("mnist", (32,), "metakan"): (27_968, 96.69),
    ("mnist", (32,), "fastkan"): (230_362, 95.16),
    ("mnist", (32,), "metafastkan"): (27_769, 95.31),
    ("mnist", (32, 32), "kan"): (237_962, 91.22),
    ("mnist", (32, 32), "metakan"): (28_992, 94.43),
    ("mnist", (32, 32), "fastkan"): (239_682, 96.37),
    ("mnist", (32, 32), "metafastkan"): (29_569, 95.99),
}

# A reader of the table must know it: such numbers are a little too good, all of them.
SELECTION = (
    "Accuracy after the last epoch, mean ± standard deviation over seeds. Learning rates and "
    "weight decay were chosen per model by test accuracy with seed 0, see docs/images_fc.md. "
)

Result = Mapping[str, Any]


def load(folder: Path) -> list[Result]:
    """All results of a folder, in the order of their names."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def headline_table(results: Sequence[Result]) -> str:
    """Accuracy, mean and spread over seeds, beside the paper's."""
    if not results:
        return "*No runs yet.*"
    groups: dict[tuple[str, tuple[int, ...], str], list[Result]] = defaultdict(list)
    for result in results:
        config = result["config"]
        groups[config["dataset"], tuple(config["hidden"]), config["model"]].append(result)
    rows = [_headline_row(key, groups[key]) for key in PAPER if key in groups]
    header = (
        "data, widths",
        "model",
        "parameters",
        "file, bytes",
        "test accuracy, %",
        "runs",
        "paper: parameters",
        "paper: accuracy, %",
    )
    return f"{markdown(header, rows)}\n\n{_small_print(results, SELECTION)}"


def _headline_row(
    key: tuple[str, tuple[int, ...], str], results: Sequence[Result]
) -> tuple[str, ...]:
    dataset, hidden, model = key
    paper_parameters, paper_accuracy = PAPER[key]
    widths = ", ".join(map(str, (784, *hidden, 10)))
    return (
        f"{DATASETS[dataset]}, [{widths}]",
        NAMES[model],
        _one(f"{sum(r['parameters'].values()):,}" for r in results),
        _one(f"{r['file_bytes']:,}" for r in results),
        _mean_and_spread([r["test_accuracy"] for r in results]),
        str(len(results)),
        f"{paper_parameters:,}",
        f"{paper_accuracy:.2f}",
    )


def collapse_table(results: Sequence[Result]) -> str:
    """Worst accuracy over the seeds at each setting, and how many runs collapsed."""
    if not results:
        return "*No runs yet.*"
    cells: dict[tuple[float, float], dict[int, list[float]]] = defaultdict(dict)
    for result in results:
        settings = result["config"]["settings"]
        rates = (settings["prompt_lr"], settings["meta_lr"])
        same = cells[rates].setdefault(settings["convert"]["dim_z"], [])
        same.append(result["test_accuracy"])
    sizes = sorted({size for row in cells.values() for size in row})
    rows = [
        (*(f"{rate:g}" for rate in rates), *(_worst(row.get(size, [])) for size in sizes))
        for rates, row in sorted(cells.items())
    ]
    header = ("prompt lr", "meta-learner lr", *(f"dim_z = {size}" for size in sizes))
    accuracies = [result["test_accuracy"] for result in results]
    lost = sum(a < COLLAPSED for a in accuracies)
    epochs = _one(str(result["config"]["epochs"]) for result in results)
    data = _one(DATASETS[result["config"]["dataset"]] for result in results)
    seeds = len({result["config"]["seed"] for result in results})
    return (
        f"{lost} of {len(results)} runs collapsed (accuracy below {COLLAPSED:g} %, chance is "
        f"{CHANCE:g} %); the worst of all ended at {min(accuracies):.2f} %. {data}, "
        f"`convert`'s defaults, {epochs} epochs; test accuracy in % of the worst of {seeds} seeds:"
        f"\n\n{markdown(header, rows)}\n\n{_small_print(results)}"
    )


def _small_print(results: Sequence[Result], more: str = "") -> str:
    """Say what the reader has to know of the runs: epochs, code, machine."""
    epochs = _one(str(r["config"]["epochs"]) for r in results)
    commits = _one((r["code"]["commit"] or "unknown")[:10] for r in results)
    torch = _one(r["versions"]["torch"] for r in results)
    machine = _one(f"{r['hardware']['name']}, {r['hardware']['threads']} thread" for r in results)
    text = f"{more}{epochs} epochs; code at {commits}; torch {torch}; {machine}."
    dirty = sum(r["code"]["dirty"] is not False for r in results)
    if dirty:
        text += f" **{dirty} of {len(results)} runs are from code that was not committed.**"
    return f"<sub>{text}</sub>"


def _one(values: Iterable[str]) -> str:
    """Return the value that all have, or all the different ones."""
    return " / ".join(sorted(set(values)))


def _worst(accuracies: Sequence[float]) -> str:
    return f"{min(accuracies):.2f}" if accuracies else "no run"


def _mean_and_spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table of ``rows`` below ``header``."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_section(text: str, name: str, content: str) -> str:
    """Put ``content`` between the markers of section ``name``.

    Raises:
        ValueError: ``text`` does not have both markers once, in this order.
    """
    start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not opened or not closed or start in after or end in after:
        raise ValueError(f"expected {start} and then {end}, once each")
    return f"{before}{start}\n{content}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results" / "images_fc")
    args = parser.parse_args(argv)
    text = old = args.readme.read_text()
    text = replace_section(text, "headline", headline_table(load(args.results / "headline")))
    text = replace_section(text, "collapse", collapse_table(load(args.results / "collapse")))
    if args.check and text != old:
        raise SystemExit(f"{args.readme} is stale: run python -m recipes.report")
    if not args.check:
        args.readme.write_text(text)
        print(f"{args.readme}: {'no change' if text == old else 'updated'}")


if __name__ == "__main__":
    main()
