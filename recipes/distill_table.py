"""The result files of :mod:`recipes.distill_images` as tables and as a curve.

python -m recipes.distill_table           # rewrites README.md and curve.png in results/distill
python -m recipes.distill_table --check   # exit status 1 if README.md is not what they give
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from recipes.records import REPOSITORY
from recipes.results import load

__all__ = ["curve", "main", "refresh", "table"]

# How far others shrink a trained KAN, (times smaller, points lost), as they say of their networks.
OTHERS = {"MetaCluster": (80.0, 0.0), "SHARe-KAN": (9.3, 2.0)}
CAVEAT = "crosses: what papers say of other networks and data, so no comparison"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables of results: accuracy, then bytes."""
    lines = [
        "| network, seed | model | numbers an edge | data | teacher, % | accuracy, % | lost |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {_network(r)}, {r['seed']} | {r['kind']} | {r['dim_z']} | {r['data_used']} | "
        f"{r['teacher']['test_accuracy']:.2f} | {r['test_accuracy']:.2f} | "
        f"{r['teacher']['test_accuracy'] - r['test_accuracy']:.2f} |"
        for r in found
    ]
    lines += [
        "",
        "| network, seed | model | numbers an edge | data | bits | teacher's bytes | bytes "
        "| smaller | accuracy, % | lost | tuned: bytes | smaller | accuracy, % | lost |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        before = r["teacher"]["bytes"]
        best = max(r["teacher"]["test_accuracy"], r["test_accuracy"])
        for f in r["files"]:
            plain = _file(before, f.get("bytes"), f.get("test_accuracy"), best)
            tuned = _file(before, f.get("tuned_bytes"), f.get("tuned_accuracy"), best)
            lines.append(
                f"| {_network(r)}, {r['seed']} | {r['kind']} | {r['dim_z']} | {r['data_used']} | "
                f"{f['bits']:g} | {before:,} | {plain} | {tuned} |"
            )
    return "\n".join([*lines, ""])


def _network(result: Mapping[str, Any]) -> str:
    grid = result.get("grid", 5)
    name = f"{result['dataset']} {result.get('network', '')}".strip()
    return name if grid == 5 else f"{name} G={grid}"


def _file(before: int, size: int | None, accuracy: float | None, best: float) -> str:
    """Cells of one file; the loss is that from the better of the teacher and the whole model."""
    if size is None or accuracy is None:
        return "| | |"
    return f"{size:,} | {before / size:.1f}x | {accuracy:.2f} | {best - accuracy:.2f}"


def curve(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw points of accuracy lost against how many times smaller the file is, tuned where it was.

    One colour for each way to get a model; lines of one colour are seeds.
    The loss is that from the better of the teacher and the model before rounding.
    """
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    colours: dict[str, str] = {}
    for result in found:
        if not result["files"]:
            continue
        before = result["teacher"]["bytes"]
        best = max(result["teacher"]["test_accuracy"], result["test_accuracy"])
        points = sorted(
            (
                before / (f["tuned_bytes"] if "tuned_bytes" in f else f["bytes"]),
                best - (f["tuned_accuracy"] if "tuned_bytes" in f else f["test_accuracy"]),
            )
            for f in result["files"]
        )
        label = f"{_network(result)}, dim_z={result['dim_z']}, {result['kind']}"
        label += f", {result['data_used']}"
        known = label in colours
        colour = colours.setdefault(label, f"C{len(colours)}")
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o-", color=colour, markersize=4, label=None if known else label)
    for name, point in OTHERS.items():
        axes.plot(*point, "kx", markersize=8)
        axes.annotate(name, point, textcoords="offset points", xytext=(-6, 6), ha="right")
    axes.set(xscale="log", yscale="symlog", ylim=(-0.5, 80))
    axes.set_xlabel("times smaller than the float32 file of the unconverted network")
    axes.set_ylabel("points of test accuracy lost")
    axes.set_title(CAVEAT, fontsize="small")
    axes.grid(alpha=0.3)
    if colours:
        figure.legend(fontsize="x-small", loc="outside lower center", ncols=2, frameon=False)
    return figure


def refresh(folder: Path) -> None:
    """Rewrite the tables and the curve of the results in ``folder``."""
    found = load(folder)
    (folder / "README.md").write_text(table(found))
    curve(found).savefig(folder / "curve.png", dpi=120, metadata={"Software": None})


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.distill_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results" / "distill")
    args = parser.parse_args(argv)
    if not args.check:
        refresh(args.results)
    elif (args.results / "README.md").read_text() != table(load(args.results)):
        raise SystemExit(f"{args.results} is stale: run python -m recipes.distill_table")


if __name__ == "__main__":
    main()
