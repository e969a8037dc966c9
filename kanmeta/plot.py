"""Pictures of what a model has learnt. Each function returns a figure; nothing is shown or written.

Needs matplotlib (the extra ``plot``), and no display.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kanmeta.access import prompts as prompts_of
from kanmeta.errors import PlanError
from kanmeta.plot_axes import annotate, label, quiet
from kanmeta.plot_data import coefficients_of, edges_of, known, layer_named, stacked
from kanmeta.surgery import bindings
from kanmeta.univariate import Edge, curves

try:
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "kanmeta.plot needs matplotlib: pip install matplotlib (kanmeta's extra 'plot')",
        name=error.name,
    ) from error

__all__ = ["compression", "functions", "prompts", "similarity"]

_AFTER, _BEFORE = "#1f5fa8", "#b0b0b0"
_COLUMNS = 4
_CURVES = 12  # panels that can still be read on a page


def functions(
    model: nn.Module,
    layer: str | None = None,
    *,
    before: nn.Module | None = None,
    edges: Sequence[Edge] | None = None,
    span: tuple[float, float] = (-1.0, 1.0),
    points: int = 201,
) -> Figure:
    """Draw the learnt univariate functions phi_oi(x) - phi_oi(0) of a layer, a panel for each edge.

    They are found by running the layer's own forward, so a constant of each cannot be told. Where
    a norm mixes the inputs (fast-kan's layer norm), it is left out, and the axis says so.

    >>> from kanmeta import plot
    >>> figure = plot.functions(KAN([4, 3]), edges=[(0, 0), (2, 3)])
    >>> figure.savefig("functions.png")

    Args:
        model: converted or not; not changed.
        layer: name of the layer; None: the first KAN layer.
        before: a model with the same layer, drawn in grey behind: the teacher, for instance.
        edges: (output, input) pairs; None: 12 at most, evenly spread.
        span: the inputs, from and to.
        points: of a curve.

    Raises:
        PlanError: there is no such layer or edge; it is a convolution, or no sum of univariate
            functions, or gives numbers that are not finite.
    """
    name, spec = layer_named(model, layer)
    chosen = edges_of(spec, edges, _CURVES)
    x = torch.linspace(*span, points, dtype=torch.float64)
    found = curves(model.get_submodule(name), spec, chosen, x)
    grey = None
    if before is not None:
        other = layer_named(before, name)[1]
        if other.edge_shape != spec.edge_shape:
            raise PlanError(
                f"before: {name or '(root)'} has edges {other.edge_shape}, expected "
                f"{spec.edge_shape} as in the model"
            )
        grey = curves(before.get_submodule(name), other, chosen, x).y
    rows = -(-len(chosen) // _COLUMNS)
    columns = -(-len(chosen) // rows)
    figure = Figure(figsize=(2.3 * columns + 0.6, 1.8 * rows + 1.0), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for number, axis in enumerate(axes):
        if number >= len(chosen):
            axis.set_visible(False)
            continue
        if grey is not None:
            axis.plot(x, grey[number], color=_BEFORE, linewidth=3, label="before")
        axis.plot(x, found.y[number], color=_AFTER, linewidth=1.5, label="after")
        output, source = chosen[number]
        axis.set_title(f"in {source} → out {output}", fontsize="small")
        quiet(axis)
        axis.tick_params(labelbottom=number + columns >= len(chosen))
    if grey is not None:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle(f"{name or '(root)'} ({spec.class_name})", x=0.01, ha="left", fontsize="medium")
    left_out = ", norm left out" if found.without_norm else ""
    figure.supxlabel(f"input x{left_out}", fontsize="small")
    figure.supylabel("φ(x) - φ(0)", fontsize="small")
    return figure


def similarity(
    model: nn.Module,
    *,
    before: nn.Module | None = None,
    layers: Sequence[str] | None = None,
) -> Figure:
    """Draw the cosine similarity of the coefficients of edges, the paper's Figure 9 (right).

    cos(w_a, w_b) of all pairs of edges: blocks of one colour are edges with one function up to a
    factor. Of more than 150 edges 150 are drawn, evenly spread.

    >>> from kanmeta import plot
    >>> model = kanmeta.convert(KAN([64, 32, 10]))
    >>> figure = plot.similarity(model, before=KAN([64, 32, 10]))

    Args:
        model: converted or not.
        before: a second model, drawn beside it on the left.
        layers: names of layers with equal ``dim_w``; None: all that are like the first.

    Raises:
        PlanError: there is no such layer, or their ``dim_w`` differ, or coefficients are not
            finite.
    """
    both = ([("before", before)] if before is not None else []) + [("after", model)]
    figure = Figure(figsize=(4.6 * len(both) + 0.8, 4.6), layout="constrained")
    axes = figure.subplots(1, len(both), squeeze=False)[0]
    image: AxesImage | None = None
    for axis, (title, each) in zip(axes, both, strict=True):
        w, names, cuts = stacked(coefficients_of(each, layers))
        unit = F.normalize(w, dim=1)
        image = axis.imshow(
            (unit @ unit.T).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        label(axis, names, cuts)
        if before is not None:
            axis.set_title(title, fontsize="medium")
    assert image is not None
    figure.colorbar(image, ax=[*axes], shrink=0.8, label="cosine similarity of coefficients")
    return figure


def prompts(model: nn.Module, *, layers: Sequence[str] | None = None) -> Figure:
    """Draw the distances of prompts, the paper's Figure 10: dark where edges are alike.

    ||z_a - z_b|| of all pairs of edges. Of more than 150 edges 150 are drawn, evenly spread.
    Prompts of layers with different meta-learners cannot be compared.

    >>> from kanmeta import plot
    >>> figure = plot.prompts(kanmeta.convert(KAN([64, 32, 10])))

    Args:
        model: a converted model.
        layers: names of layers that share a meta-learner; None: all that share the first one's.

    Raises:
        NothingToConvertError: the model is not converted.
        PlanError: there is no such layer, or they do not share a meta-learner, or prompts are not
            finite.
    """
    found = prompts_of(model)
    metas = {name: binding.meta_learner for name, binding in bindings(model)}
    names = known(layers, found)
    if layers is None:
        names = [name for name in found if metas[name] is metas[names[0]]]
    elif len({metas[name] for name in names}) > 1:
        raise PlanError(
            f"layers={[*layers]}: they have different meta-learners, so that their prompts mean "
            "different things; draw them one by one"
        )
    z, labels, cuts = stacked({name: found[name].detach() for name in names})
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(torch.cdist(z, z).numpy(), cmap="magma", vmin=0, interpolation="nearest")
    label(axis, labels, cuts, line="white")
    figure.colorbar(image, ax=axis, shrink=0.8, label="distance of prompts")
    return figure


def compression(records: Iterable[Mapping[str, Any]]) -> Figure:
    """Draw the bytes of files against the accuracy of the models in them.

    >>> from kanmeta import plot
    >>> figure = plot.compression([{"bytes": 954_696, "accuracy": 88.2, "series": "teacher"}])

    Args:
        records: mappings with ``"bytes"``, ``"accuracy"`` in %, and optionally ``"series"``, whose
            members are joined by a line, and ``"label"``, written beside the point where there is
            room.

    Raises:
        PlanError: there is no record, or one without bytes or accuracy.
    """
    series: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        missing = [key for key in ("bytes", "accuracy") if record.get(key) is None]
        if missing:
            raise PlanError(f"{dict(record)}: expected a record with {' and '.join(missing)}")
        series.setdefault(str(record.get("series", "")), []).append(record)
    if not series:
        raise PlanError("no records: expected mappings with 'bytes' and 'accuracy'")
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    labels: list[tuple[str, tuple[float, float], Any]] = []
    for name, points in series.items():
        points.sort(key=lambda point: point["bytes"])
        x, y = ([float(point[key]) for point in points] for key in ("bytes", "accuracy"))
        (line,) = axis.plot(x, y, marker="o", markersize=5, linewidth=1.2, label=name or None)
        labels += [
            (str(p["label"]), at, line.get_color())
            for p, at in zip(points, zip(x, y, strict=True), strict=True)
            if p.get("label")
        ]
    axis.set_xscale("log")
    axis.set_xlabel("bytes of the file")
    axis.set_ylabel("accuracy, %")
    axis.grid(color="0.92")
    if [*series] != [""]:
        axis.legend(frameon=False, fontsize="small")
    quiet(axis)
    annotate(axis, labels)
    return figure
