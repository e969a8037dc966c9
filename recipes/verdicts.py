"""How often the Meta models of a table are better than their baselines, in words."""

import statistics
from collections.abc import Sequence

from recipes.paper import Cell
from recipes.results import Entries

__all__ = ["verdict", "verdicts"]


def verdicts(cells: Sequence[Cell], entries: Entries) -> list[str]:
    """Of protocol fair and of its variants that were run: see :func:`verdict`."""
    rows = {cell.row for cell in cells}
    found = {kind for row, _, kind in entries if row in rows and kind.startswith("fair, ")}
    return [verdict(cells, entries, kind) for kind in ("fair", *sorted(found))]


def verdict(cells: Sequence[Cell], entries: Entries, kind: str = "fair") -> str:
    """In how many cells the Meta model of a ``kind`` is better than the baseline of that kind.

    Medians over cells; the error of a cell is the mean over its seeds.
    """
    own = "fair" if kind == "fair, wider" else kind  # it changes nothing but the Meta model
    name = f"Variant {kind[6:]}" if kind.startswith("fair, ") else f"Protocol {kind}"
    better, ratios, sizes = 0, [], []
    higher = cells[0].metric.startswith("test accuracy")
    for cell in cells:
        meta = entries.get((cell.row, cell.model, kind))
        plain = entries.get((cell.row, cell.model.removeprefix("Meta"), own))
        if not cell.model.startswith("Meta") or not meta or not plain:
            continue
        sizes.append(meta.parameters / plain.parameters)
        if meta.mean is None or plain.mean is None:
            better += meta.mean is not None
            continue
        better += meta.mean > plain.mean if higher else meta.mean < plain.mean
        ratios.append(meta.mean - plain.mean if higher else meta.mean / plain.mean)
    if not sizes:
        return f"{name}: no cell has both models."
    if not ratios:
        return f"{name}: the Meta model is better in {better} of {len(sizes)} cells."
    change = (
        f"median difference {statistics.median(ratios):+.2f} points"
        if higher
        else f"median error {statistics.median(ratios):.2g} times the baseline's"
    )
    return (
        f"{name}: the Meta model is better in {better} of {len(sizes)} cells, {change}, "
        f"with {statistics.median(sizes):.2f} times the parameters (median)."
    )
