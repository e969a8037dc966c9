"""What a conversion would give: layers, parameters, memory of training, bytes on disk."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from safetensors.torch import save
from torch import nn

import kanmeta
from kanmeta.api import apply_plan
from kanmeta.cli.output import Output, bytes_text, layers_table, table
from kanmeta.plan import Plan

__all__ = ["compared", "distill_tables", "plain_bytes", "plan_record", "plan_tables", "size_record"]


def size_record(model: nn.Module, planned: Plan, bits: int | None) -> dict[str, Any]:
    """Convert ``model``, in place, and measure; see :func:`plan_record` for the rest.

    Args:
        model: not converted.
        planned: what ``kanmeta.plan`` said of it.
        bits: width of prompts in the file.
    """
    before = plain_bytes(model)
    apply_plan(model, planned, None)
    summary = kanmeta.summary(model, prompt_bits=bits)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "compact.safetensors"
        kanmeta.save(model, file, prompt_bits=bits)
        after = file.stat().st_size
    return {
        "parameters": {"before": summary.parameters_before, "after": summary.parameters_after},
        "training_bytes": {"before": summary.bytes_before, "after": summary.bytes_after},
        "file_bytes": {"before": before, "after": after},
        "bytes_per_edge": {
            "before": summary.edge_bytes_before,
            "after": summary.edge_bytes_after,
        },
    }


def plain_bytes(model: nn.Module) -> int:
    """Bytes of the safetensors file of the model's state_dict."""
    stored = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if hasattr(tensor, "detach")
    }
    return len(save(stored))


def plan_record(planned: Plan) -> dict[str, Any]:
    """Plain data of a plan."""
    settings = planned.settings
    return {
        "layers": [
            {
                "name": layer.name,
                "adapter": layer.spec.adapter,
                "class": layer.spec.class_name,
                "edges": [*layer.spec.edge_shape],
                "dim_w": layer.spec.dim_w,
                "meta_learner": layer.cluster,
                "parameters_before": layer.before,
                "parameters_after": layer.spec.edges * settings.dim_z,
            }
            for layer in planned.layers
        ],
        "meta_learners": [
            {
                "dim_z": settings.dim_z,
                "hidden": settings.hidden,
                "dim_w": cluster.dim_w,
                "parameters": cluster.parameters,
                "layers": [*cluster.layers],
            }
            for cluster in planned.clusters
        ],
        "skipped": [*planned.skipped],
    }


def plan_tables(record: Mapping[str, Any]) -> list[RenderableType]:
    """What people see of :func:`plan_record` and :func:`size_record` together."""
    metas: Sequence[Mapping[str, Any]] = record["meta_learners"]
    keys = "parameters_before", "parameters_after"
    layers = layers_table(record["layers"], [">before", ">after"], keys)
    lines = [
        f"meta-learner #{i}: {m['dim_z']} -> {m['hidden']} -> {m['dim_w']}, "
        f"{m['parameters']:,} parameters, shared by {len(m['layers'])} layer(s)"
        for i, m in enumerate(metas)
    ]
    return [layers, *lines, _totals(record), *(f"left as it is: {s}" for s in record["skipped"])]


def _totals(record: Mapping[str, Any]) -> Table:
    rows = []
    for title, key, text in (
        ("parameters", "parameters", "{:,}".format),
        ("parameters, gradients, Adam", "training_bytes", bytes_text),
        ("bytes on disk", "file_bytes", "{:,}".format),
        ("stored bytes an edge", "bytes_per_edge", "{:.4g}".format),
    ):
        before, after = record[key]["before"], record[key]["after"]
        rows.append((title, text(before), text(after), f"{before / max(after, 1e-9):.2f}x"))
    return table("the whole model", ">as it is", ">converted", ">smaller", rows=rows)


def compared(made: Output, before: int, accuracies: tuple[float, float] | None) -> Output:
    """Add a table of the trained file and the compact one: bytes, and accuracy in % if known."""
    after = made.record["file_bytes"]
    record: dict[str, Any] = {"weights_bytes": before}
    columns = ["file", ">bytes", ">smaller"]
    rows = [["trained", before, ""], ["compact", after, f"{before / after:.2f}x"]]
    if accuracies is not None:
        record["accuracy"] = {"before": accuracies[0], "after": accuracies[1]}
        columns.append(">accuracy, %")
        for row, value in zip(rows, accuracies, strict=True):
            row.append(f"{value:.2f}")
    return Output(made.record | record, [*made.shown, table(*columns, rows=rows)], made.notes)


def distill_tables(report: kanmeta.DistillReport) -> list[RenderableType]:
    """What people see of a report of :func:`kanmeta.distill`."""
    layers = table(
        "layer",
        ">edges",
        ">coefficient error",
        ">PCA floor",
        ">function error",
        rows=[
            (
                layer.name or "(root)",
                layer.edges,
                f"{layer.coefficient_error:.4g}",
                f"{layer.pca_floor:.4g}",
                "" if layer.function_error is None else f"{layer.function_error:.4g}",
            )
            for layer in report.layers
        ],
    )
    stages = table(
        "stage",
        ">coefficient error",
        ">seconds",
        "",
        rows=[
            (s.name, f"{s.coefficient_error:.4g}", f"{s.seconds:.1f}", s.note)
            for s in report.stages
        ],
    )
    if report.output_error is None:
        return [layers, stages]
    agree = "" if report.agreement is None else f", same class {100 * report.agreement:.2f} %"
    outputs = f"outputs ({report.loss}): relative error {report.output_error:.4g}{agree}"
    return [layers, stages, outputs]
