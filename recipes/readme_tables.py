"""The two tables of README.md."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from recipes.paper import cell
from recipes.results import Result, mean_and_spread

__all__ = ["collapse_table", "headline_table", "markdown", "small_print"]

CHANCE = 10.0  # % of ten classes that are equally frequent
COLLAPSED = 2 * CHANCE  # below: a run that has learnt next to nothing

NAMES = {
    "KAN": "B-spline KAN, G=5, k=3",
    "MetaKAN": "converted",
    "FastKAN": "FastKAN, 8 centres",
    "MetaFastKAN": "converted",
}
HEADLINE = [("T5|FMNIST|32|G5", "KAN"), ("T5|FMNIST|32|G5", "MetaKAN")]
HEADLINE += [("T6|FMNIST|32|c8", "FastKAN"), ("T6|FMNIST|32|c8", "MetaFastKAN")]

# A reader of the table must know it: such numbers are a little too good, all of them.
SELECTION = (
    "Accuracy after the last epoch, mean ± standard deviation over seeds. Learning rates and "
    "weight decay were chosen per model by test accuracy with seed 0, see docs/images_fc.md. "
)


def headline_table(results: Sequence[Result]) -> str:
    """Accuracy of the runs judged after the last epoch, mean and spread, beside the paper's."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        job = result["job"]
        if job["protocol"] == "last":
            groups[job["row"], job["model"]].append(result)
    rows = [_headline_row(key, groups[key]) for key in HEADLINE if key in groups]
    if not rows:
        return "*No runs yet.*"
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
    used = [result for key in HEADLINE for result in groups.get(key, [])]
    return f"{markdown(header, rows)}\n\n{small_print(used, SELECTION)}"


def _headline_row(key: tuple[str, str], results: Sequence[Result]) -> tuple[str, ...]:
    printed = cell(*key)
    widths = ", ".join(map(str, results[0]["job"]["config"]["widths"]))
    return (
        f"Fashion-MNIST, [{widths}]",
        NAMES[key[1]],
        _one(f"{sum(r['parameters'].values()):,}" for r in results),
        _one(f"{r['file_bytes']:,}" for r in results),
        mean_and_spread([r["value"] for r in results]),
        str(len(results)),
        f"{printed.parameters:,}",
        f"{printed.value:.2f}",
    )


def collapse_table(results: Sequence[Result]) -> str:
    """Worst accuracy over the seeds at each setting, and how many runs collapsed."""
    results = [r for r in results if r["job"]["name"].startswith("collapse-")]
    if not results:
        return "*No runs yet.*"
    cells: dict[tuple[float, float], dict[int, list[float]]] = defaultdict(dict)
    for result in results:
        settings = result["job"]["config"]["settings"]
        rates = (settings["prompt_lr"], settings["meta_lr"])
        same = cells[rates].setdefault(settings["convert"]["dim_z"], [])
        same.append(result["value"])
    sizes = sorted({size for row in cells.values() for size in row})
    rows = [
        (*(f"{rate:g}" for rate in rates), *(_worst(row.get(size, [])) for size in sizes))
        for rates, row in sorted(cells.items())
    ]
    header = ("prompt lr", "meta-learner lr", *(f"dim_z = {size}" for size in sizes))
    accuracies = [result["value"] for result in results]
    lost = sum(a < COLLAPSED for a in accuracies)
    epochs = _one(str(result["job"]["epochs"]) for result in results)
    seeds = len({result["job"]["seed"] for result in results})
    return (
        f"{lost} of {len(results)} runs collapsed (accuracy below {COLLAPSED:g} %, chance is "
        f"{CHANCE:g} %); the worst of all ended at {min(accuracies):.2f} %. Fashion-MNIST, "
        f"`convert`'s defaults, {epochs} epochs; test accuracy in % of the worst of {seeds} seeds:"
        f"\n\n{markdown(header, rows)}\n\n{small_print(results)}"
    )


def small_print(results: Sequence[Result], more: str = "") -> str:
    """Say what the reader has to know of the runs: epochs, code, machine."""
    epochs = _one(str(r["job"]["epochs"]) for r in results)
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


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
