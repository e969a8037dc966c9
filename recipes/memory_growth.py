"""How peak memory grows with connections, grid size and batch: the paper's Figure 4, and one more.

    python -m recipes.memory_growth --upstream CHECKOUTS --paper CHECKOUT
    python -m recipes.memory_growth --plot         # draws again from the result files

Peak of allocated bytes of a training step, as in :mod:`recipes.memory`; nothing is timed.
One JSON file a plot, skipped if it was measured with the same, committed code.
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

__all__ = ["PANELS", "STYLES", "Panel", "Peaks", "load", "main", "measure", "plot"]


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


Peaks = dict[str, dict[str, list[list[int]]]]
"""[place on the horizontal axis, peak bytes] by panel and variant."""


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


def run(panel: Panel, origins: Origins, options: argparse.Namespace, code: Any) -> None:
    """Measure a panel and write its file, unless that was done before with the same code."""
    path = options.out / f"growth-{panel.name}.json"
    config = {"points": [list(p) for p in panel.points], "paper": origins.paper is not None}
    if path.exists() and code["dirty"] is False:
        before = read_json(path)
        if (before["config"], before["code"]) == (config, code):
            return
    result = {
        "config": config,
        "peaks": measure(panel, origins, options.device),
        "code": code,
        "versions": versions(),
        "hardware": hardware(options.device),
        "files": used_files(),
    }
    write_json(path, result)


def load(folder: Path) -> Peaks:
    """What the result files of all panels have; nothing if one is missing."""
    paths = {panel.name: folder / f"growth-{panel.name}.json" for panel in PANELS}
    if not all(path.exists() for path in paths.values()):
        return {}
    return {name: read_json(path)["peaks"] for name, path in paths.items()}


def plot(peaks: Peaks, path: Path) -> None:
    """Draw all panels side by side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "kanmeta"  # the same file from the same numbers
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 4.2), layout="constrained")
    for axis, panel in zip(axes, PANELS, strict=True):
        for name, line in peaks[panel.name].items():
            style = STYLES[name]
            places, heights = zip(*line, strict=True)
            axis.plot(
                places,
                [height / 1e6 for height in heights],
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
    if not options.plot:
        origins, code = Origins(options.upstream, options.paper), code_state()
        for panel in PANELS:
            run(panel, origins, options, code)
    plot(load(options.out), options.out / "growth.svg")


if __name__ == "__main__":
    main()
