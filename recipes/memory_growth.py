"""How peak memory grows with connections, grid size and batch: the paper's Figure 4, and one more.

    python -m recipes.memory_growth --upstream CHECKOUTS --paper CHECKOUT
    python -m recipes.memory_growth --plot         # draws again from the result file

Peak of allocated bytes of a training step, as in :mod:`recipes.memory`; nothing is timed.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recipes.checkouts import used_files
from recipes.memory_cases import Case, Origins, spline_case
from recipes.memory_measure import PAPER, add_options, peak
from recipes.records import code_state, hardware, read_json, versions, write_json

__all__ = ["PANELS", "Panel", "main", "measure", "plot"]


@dataclass(frozen=True)
class Panel:
    """One plot: a net [width, width, width] of which one size changes.

    Attributes:
        name: which: ``"connections"``, ``"grid"`` or ``"batch"``.
        label: of the horizontal axis.
        points: (width, grid size, batch).
        hidden: width of the meta-learner.
    """

    name: str
    label: str
    points: tuple[tuple[int, int, int], ...]
    hidden: int

    def at(self, point: tuple[int, int, int]) -> int:
        """Place of a point on the horizontal axis."""
        width, grid, batch = point
        return {"connections": 2 * width * width, "grid": grid, "batch": batch}[self.name]


PANELS = (
    Panel(
        "connections",
        "connections (G = 5, batch 256, hidden 32)",
        tuple((width, 5, 256) for width in (32, 64, 128, 256, 512, 1024)),
        32,
    ),
    Panel(
        "grid",
        "grid size G ([256, 256, 256], batch 256, hidden 64)",
        tuple((256, grid, 256) for grid in (5, 10, 20, 40, 80, 160)),
        64,
    ),
    Panel(
        "batch",
        "batch ([256, 256, 256], G = 5, hidden 32)",
        tuple((256, 5, batch) for batch in (64, 256, 1024, 2048, 4096, 8192)),
        32,
    ),
)


class Style(NamedTuple):
    """How a variant is drawn."""

    label: str
    color: str
    marker: str
    line: str


STYLES = {
    "KAN": Style("KAN (efficient-kan)", "#D55E00", "o", "-"),
    PAPER: Style("paper's MetaKAN code", "#E69F00", "s", "--"),
    "materialize": Style("converted, materialized", "#999999", "^", ":"),
    "stream": Style("converted, streamed", "#0072B2", "D", "-"),
    "MLP": Style("MLP of the same widths", "#000000", "x", "--"),
}


def cases(panel: Panel, origins: Origins) -> Iterator[tuple[int, Case]]:
    """Places on the horizontal axis and what is measured there."""
    for point in panel.points:
        width, grid, batch = point
        yield panel.at(point), spline_case(origins, (width,) * 3, grid, batch, panel.hidden)


def measure(panel: Panel, origins: Origins, device: torch.device) -> dict[str, list[list[int]]]:
    """[place on the horizontal axis, peak bytes] by variant."""
    names = [name for name in STYLES if name != PAPER or origins.paper is not None]
    found: dict[str, list[list[int]]] = {name: [] for name in names}
    for place, case in cases(panel, origins):
        for name in names:
            found[name].append([place, peak(case, name, device)])
    return found


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw all panels side by side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "kanmeta"  # the same file from the same numbers
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 4.2), layout="constrained")
    for axis, panel in zip(axes, PANELS, strict=True):
        for name, line in result["panels"][panel.name].items():
            style = STYLES[name]
            places, peaks = zip(*line, strict=True)
            axis.plot(
                places,
                [p / 1e6 for p in peaks],
                label=style.label,
                color=style.color,
                marker=style.marker,
                linestyle=style.line,
                markersize=5,
            )
        axis.set(xscale="log", yscale="log", xlabel=panel.label)
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].set_ylabel("peak memory of a training step, MB")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and plot."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.memory_growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument("--plot", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    file = options.out / "growth.json"
    if not options.plot:
        origins, code = Origins(options.upstream, options.paper), code_state()
        panels = {panel.name: measure(panel, origins, options.device) for panel in PANELS}
        result = {
            "panels": panels,
            "code": code,
            "versions": versions(),
            "hardware": hardware(options.device),
            "files": used_files(),
        }
        write_json(file, result)
    plot(read_json(file), options.out / "growth.svg")


if __name__ == "__main__":
    main()
