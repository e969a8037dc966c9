"""What distilling reached: errors of coefficients, of layers and of the model, and the time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["DistillReport", "LayerReport", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One stage: its name, squared relative coefficient error of all layers after it, seconds.

    ``note`` says what it did or why it did not.
    """

    name: str
    coefficient_error: float
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: of the layer.
        edges, dim_w: its size.
        coefficient_error: ||w - w_teacher|| / ||w_teacher|| over all its edges.
        pca_floor: the same of the best linear code, PCA of the layer's cluster with one mean and
            ``dim_z`` axes.
        function_error: ||y - y_teacher|| / ||y_teacher|| of the layer's output at the teacher's own
            inputs to it, on held-out data; None without data, and where y_teacher is zero.
    """

    name: str
    edges: int
    dim_w: int
    coefficient_error: float
    pca_floor: float
    function_error: float | None


@dataclass(frozen=True)
class DistillReport:
    """Result of :func:`kanmeta.distill`. ``print(report)`` shows it, ``as_dict`` gives plain data.

    Attributes:
        layers: one record each.
        stages: what was done, in order.
        coefficient_error, pca_floor: as in :class:`LayerReport`, over all layers.
        loss: what the outputs were matched with; None without data.
        output_error: ||y - y_teacher|| / ||y_teacher|| of the model, on held-out data.
        agreement: share of held-out rows with the same largest output, for class scores; None where
            the outputs are none, or without data.
        seconds: in all.
    """

    layers: tuple[LayerReport, ...]
    stages: tuple[Stage, ...]
    coefficient_error: float
    pca_floor: float
    loss: str | None
    output_error: float | None
    agreement: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers."""
        return asdict(self) | {
            "layers": [asdict(layer) for layer in self.layers],
            "stages": [asdict(stage) for stage in self.stages],
        }

    def __str__(self) -> str:
        """Two tables and a line about the outputs."""
        rows = [("layer", "edges", "dim_w", "coefficient error", "PCA floor", "function error")]
        rows += [
            (
                layer.name or "(root)",
                f"{layer.edges:,}",
                str(layer.dim_w),
                f"{layer.coefficient_error:.4g}",
                f"{layer.pca_floor:.4g}",
                "" if layer.function_error is None else f"{layer.function_error:.4g}",
            )
            for layer in self.layers
        ]
        rows.append(("all", "", "", f"{self.coefficient_error:.4g}", f"{self.pca_floor:.4g}", ""))
        steps = [("stage", "coefficient error", "seconds", "")]
        steps += [
            (stage.name, f"{stage.coefficient_error:.4g}", f"{stage.seconds:.1f}", stage.note)
            for stage in self.stages
        ]
        lines = [*_table(rows), "", *_table(steps)]
        if self.output_error is not None:
            agree = "" if self.agreement is None else f", same class {100 * self.agreement:.2f} %"
            loss = "" if self.loss is None else f" ({self.loss})"
            lines.append(f"outputs{loss}: relative error {self.output_error:.4g}{agree}")
        return "\n".join([*lines, f"{self.seconds:.1f} s in all"])


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(w) if 0 < i < len(width) - (len(width) == 4) else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, width, strict=True))
        ).rstrip()
        for row in rows
    ]
