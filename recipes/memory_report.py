"""Tables of README.md and docs/execution.md from the result files of :mod:`recipes.memory`.

python -m recipes.memory_report           # rewrites the tables between the markers
python -m recipes.memory_report --check   # exit status 1 if they are not what the files give
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.memory_cases import NAMES
from recipes.memory_growth import PANELS, STYLES, Peaks
from recipes.memory_growth import load as load_growth
from recipes.memory_measure import COMPILED, OUT, PAPER
from recipes.memory_targets import TARGETS, judge
from recipes.readme_tables import markdown
from recipes.records import REPOSITORY, read_json
from recipes.section import replace_section

__all__ = ["all_cases", "case_table", "growth", "main", "overview", "targets"]

Result = Mapping[str, Any]

NO_RUNS = "*No runs yet.*"

_PEAK, _TIME = "allocated_bytes", "seconds"


def load(folder: Path) -> list[Result]:
    """Result files of the cases, in the cases' order."""
    paths = [folder / f"{name}.json" for name in NAMES]
    return [read_json(path) for path in paths if path.exists()]


def overview(results: Sequence[Result]) -> str:
    """One row a case: the streamed model, with its default budget, against all rivals."""
    if not results:
        return NO_RUNS
    header = (
        "case",
        "peak, MB: KAN",
        "compiled KAN",
        "paper's code",
        "MLP / CNN",
        "**streamed**",
        "KAN / streamed",
        "step time of the KAN's",
        "of the compiled KAN's",
    )
    rows = []
    for result in results:
        cases = result["variants"]
        kan, compiled, ours = cases["KAN"], cases[COMPILED], cases["stream"]
        others = (kan, compiled, cases.get(PAPER, {}), cases["MLP"])
        rows.append(
            (
                result["config"]["title"],
                *(_megabytes(row) for row in others),
                f"**{_megabytes(ours)}**",
                f"{kan[_PEAK] / ours[_PEAK]:.1f}",
                f"{ours[_TIME] / kan[_TIME]:.2f}",
                "-" if _TIME not in compiled else f"{ours[_TIME] / compiled[_TIME]:.2f}",
            )
        )
    return f"{markdown(header, rows)}\n\n{_small_print(results)}"


def _megabytes(row: Mapping[str, Any], key: str = _PEAK) -> str:
    return "-" if key not in row else f"{row[key] / 1e6:.2f}"


def case_table(result: Result) -> str:
    """All variants of a case."""
    cases = result["variants"]
    kan, mlp = cases["KAN"], cases["MLP"]
    header = (
        "variant",
        "peak, MB",
        "live tensors, MB",
        "resident, MB",
        "of MLP / CNN",
        "KAN / this",
        "step, ms",
        "of KAN",
        "spread",
    )
    rows = []
    for name, row in cases.items():
        if "cannot" in row:
            rows.append((name, f"cannot: {row['cannot']}", *[""] * (len(header) - 2)))
            continue
        times = sorted(row["times"])
        low, high = times[len(times) // 4], times[-1 - len(times) // 4]
        rows.append(
            (
                name,
                *(_megabytes(row, key) for key in (_PEAK, "live_bytes", "resident_bytes")),
                f"{row[_PEAK] / mlp[_PEAK]:.2f}",
                f"{kan[_PEAK] / row[_PEAK]:.1f}",
                f"{row[_TIME] * 1e3:.1f}",
                f"{row[_TIME] / kan[_TIME]:.2f}",
                f"{(high - low) / row[_TIME] * 100:.0f} %",
            )
        )
    return f"**{result['config']['title']}** (`{result['config']['case']}`)\n\n" + markdown(
        header, rows
    )


def all_cases(results: Sequence[Result]) -> str:
    """The tables of all cases, one after the other."""
    if not results:
        return NO_RUNS
    return "\n\n".join([*map(case_table, results), _small_print(results)])


def targets(results: Sequence[Result]) -> str:
    """What was asked for beside what was measured."""
    if not results:
        return NO_RUNS
    by_name = {result["config"]["case"]: result["variants"] for result in results}
    rows = []
    for target in TARGETS:
        verdict = judge(target, by_name.get(target.case, {}))
        met = {True: "met", False: "**missed**", None: "-"}[verdict.met]
        rows.append((target.case, str(target), verdict.measured, verdict.variant, met))
    return markdown(("case", "target for the streamed model", "measured", "variant", ""), rows)


def growth(peaks: Peaks) -> str:
    """Peaks against each size: a table for every panel of the plot."""
    if not peaks:
        return NO_RUNS
    tables = []
    for panel in PANELS:
        lines = peaks[panel.name]
        places = [place for place, _ in next(iter(lines.values()))]
        rows = [
            (STYLES[name].label, *(f"{peak / 1e6:.1f}" for _, peak in line))
            for name, line in lines.items()
        ]
        header = (f"peak in MB against {panel.label}", *(f"{place:,}" for place in places))
        tables.append(markdown(header, rows))
    return "\n\n".join(tables)


def _small_print(results: Sequence[Result]) -> str:
    """What the reader has to know of the runs."""

    def one(values: Sequence[str]) -> str:
        return " / ".join(sorted(set(values)))

    commits = one([(r["code"]["commit"] or "unknown")[:10] for r in results])
    torch = one([r["versions"]["torch"] for r in results])
    machine = one([f"{r['hardware']['name']}, {r['hardware']['threads']} thread" for r in results])
    steps = one([str(r["config"]["repeats"]) for r in results])
    classes = one(
        ["the libraries' own" if r["config"]["libraries"] else "reference" for r in results]
    )
    text = (
        "Forward, backward and Adam, float32. Peak: bytes given out by torch's allocator, with "
        "parameters, gradients, Adam's state, inputs and activations. Time: process CPU time, all "
        f"variants in turn in one process, median of {steps} steps. Classes: {classes}; code at "
        f"{commits}; torch {torch}; {machine}."
    )
    dirty = sum(r["code"]["dirty"] is not False for r in results)
    if dirty:
        text += f" **{dirty} of {len(results)} cases are from code that was not committed.**"
    return f"<sub>{text}</sub>"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.memory_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="of the pages")
    parser.add_argument("--results", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    results = load(options.results)
    pages = {
        options.root / "README.md": {"memory": overview(results)},
        options.root / "docs" / "execution.md": {
            "memory-cases": all_cases(results),
            "memory-targets": targets(results),
            "memory-growth": growth(load_growth(options.results)),
        },
    }
    for page, sections in pages.items():
        text = old = page.read_text()
        for name, content in sections.items():
            text = replace_section(text, name, content)
        if options.check and text != old:
            raise SystemExit(f"{page} is stale: run python -m recipes.memory_report")
        if not options.check:
            page.write_text(text)


if __name__ == "__main__":
    main()
