"""Figures of the report, drawn from result files, as SVG text that a page can hold.

Figure 2 of the paper: parameters against accuracy. Figure 5: dimension against error and
parameters. Figure 6: training curves.
"""

import io
from typing import Any

from recipes.results import Entries, Entry, Result

__all__ = [
    "accuracy_by_parameters",
    "axes_of",
    "error_by_dimension",
    "svg",
    "training_curves",
]

COLOURS = {"plain": "#b4532a", "Meta": "#0b6b5d"}
MARKERS = {"T5": "o", "T6": "s", "T7": "^"}
LINES = {"T5": "-", "T6": "--", "T7": ":"}


def axes_of(count: int) -> tuple[Any, Any]:
    """A figure with so many axes side by side, and the list of them."""
    from matplotlib.figure import Figure  # only here: its import takes a second

    figure = Figure(figsize=(4.6 * count, 3.4), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg(figure: Any, caption: str) -> str:
    """``figure`` as HTML, with a caption."""
    text = io.StringIO()
    # Neither a date nor random names: the same results give the same page.
    figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    drawing = whole[whole.index("<svg") :]  # no XML declaration: it becomes part of a page
    return f"<figure>{drawing}<figcaption><small>{caption}</small></figcaption></figure>"


def _kind(model: str) -> str:
    return "Meta" if model.startswith("Meta") else "plain"


def error_by_dimension(entries: Entries) -> str:
    """Figure 5: error and parameters of Table 4 against the number of variables, or nothing."""
    series: dict[tuple[str, str], list[tuple[int, Entry]]] = {}
    for (row, model, protocol), entry in entries.items():
        if row.startswith("T4|") and protocol == "fair" and entry.mean is not None:
            _, function, size = row.split("|")
            series.setdefault((function, model), []).append((int(size[1:]), entry))
    if not series:
        return ""
    figure, axes = axes_of(4)
    for (function, model), found in sorted(series.items()):
        points = sorted(found, key=lambda point: point[0])
        sizes = [n for n, _ in points]
        style = {"marker": "o", "color": COLOURS[_kind(model)], "label": model}
        axes[("f1", "f2", "f3").index(function)].plot(
            sizes, [entry.mean for _, entry in points], **style
        )
        if function == "f1":  # the networks of the three functions have the same sizes
            axes[3].plot(sizes, [entry.parameters for _, entry in points], **style)
    for ax, title in zip(axes, ("f1", "f2", "f3", "size of the networks"), strict=True):
        ax.set(title=title, xscale="log", yscale="log", xlabel="number of variables")
    axes[0].set_ylabel("mean squared error")
    axes[3].set_ylabel("parameters")
    axes[0].legend(frameon=False)
    return svg(figure, "As the paper's Figure 5, protocol fair, mean over seeds.")


def accuracy_by_parameters(entries: Entries) -> str:
    """Figure 2: accuracy of Tables 5 to 7 against parameters; empty without results."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (row, model, protocol), entry in entries.items():
        table, dataset = row.split("|")[:2]
        if table in MARKERS and protocol == "fair" and entry.mean is not None:
            models = points.setdefault(dataset, {})
            models.setdefault(f"{table} {model}", []).append((entry.parameters, entry.mean))
    if not points:
        return ""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    figure, axes = axes_of(len(points))
    for ax, (dataset, models) in zip(axes, sorted(points.items()), strict=True):
        for label, found in sorted(models.items()):
            table, model = label.split()
            style = {"color": COLOURS[_kind(model)], "marker": MARKERS[table], "label": model}
            ax.scatter([p[0] for p in found], [p[1] for p in found], alpha=0.7, **style)
        ax.set(title=dataset, xscale="log", xlabel="parameters")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.margins(x=0.25)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(frameon=False, fontsize=7)
    return svg(
        figure,
        "As the paper's Figure 2: parameters against accuracy, protocol fair, mean over seeds.",
    )


def training_curves(entries: Entries) -> str:
    """Figure 6: training loss and accuracy over the epochs of Tables 5 to 7, seed 0."""
    chosen: dict[str, list[Result]] = {}
    for (row, _, protocol), entry in entries.items():
        table, dataset = row.split("|")[:2]
        for result in entry.results:
            if table in LINES and protocol == "fair" and result["job"]["seed"] == 0:
                chosen.setdefault(dataset, []).append(result)
    return "".join(_curves(dataset, found) for dataset, found in sorted(chosen.items()))


def _curves(dataset: str, results: list[Result]) -> str:
    """Of one data set: a line for each network, a label for each kind."""
    figure, axes = axes_of(2)
    for result in results:
        job, curve = result["job"], result["curve"]
        table = job["row"].split("|")[0]
        style = {"lw": 1, "ls": LINES[table], "color": COLOURS[_kind(job["model"])]}
        scores = curve["validation"]
        axes[0].plot(range(1, 1 + len(curve["train_loss"])), curve["train_loss"], **style)
        axes[1].plot(range(1, 1 + len(scores)), scores, label=job["model"], **style)
    axes[0].set(xlabel="epoch", ylabel="training loss", yscale="log", title=dataset)
    axes[1].set(xlabel="epoch", ylabel="validation accuracy, %")
    handles, labels = axes[1].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes[1].legend(once.values(), once.keys(), frameon=False, fontsize=7)
    return svg(
        figure,
        "As the paper's Figure 6: every network of Tables 5 to 7, protocol fair, seed 0. The "
        "accuracy is that on the validation images, which are held out of the training images.",
    )
