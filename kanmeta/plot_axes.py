"""What pictures have in common: labels that do not cover each other, names of edges, frames."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["annotate", "label", "quiet"]

_NAMED = 24  # edges whose names fit beside it


def annotate(axis: Axes, labels: Sequence[tuple[str, tuple[float, float], Any]]) -> None:
    """Write labels below their points, but those that would cover another one."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # only then it is known where points are
    taken: list[tuple[float, float]] = []
    for text, at, color in labels:
        x, y = axis.transData.transform(at)
        if any(abs(x - a) < 40 and abs(y - b) < 11 for a, b in taken):
            continue
        taken.append((x, y))
        axis.annotate(
            text, at, (4, -11), textcoords="offset points", fontsize="x-small", color=color
        )


def label(axis: Axes, names: Sequence[str], cuts: Sequence[int], line: str = "black") -> None:
    """Name rows and columns of a heat map, each or part by part, and draw where parts end."""
    for cut in cuts:
        axis.axhline(cut - 0.5, color=line, linewidth=0.8)
        axis.axvline(cut - 0.5, color=line, linewidth=0.8)
    if len(names) <= _NAMED:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize="xx-small")
        axis.set_yticks(range(len(names)), names, fontsize="xx-small")
        return
    bounds = [0, *cuts, len(names)]
    firsts = [names[start].partition(" ")[0] for start in bounds[:-1]]
    middles = [(a + b - 1) / 2 for a, b in itertools.pairwise(bounds)]
    axis.set_xticks(middles, firsts, fontsize="x-small")
    axis.set_yticks(middles, firsts, fontsize="x-small", rotation=90, va="center")


def quiet(axis: Axes) -> None:
    """Leave out what says nothing."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize="x-small")
