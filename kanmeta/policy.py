"""Which mode a layer runs in: the one place that decides. Pure functions of facts and sizes.

==============  ======================================================  =========================
mode            alive between forward and backward                       can
==============  ======================================================  =========================
materialize     what autograd keeps: (edges, hidden), coefficients,      everything
                bases and intermediate results of the library
regenerate      the same without (edges, hidden) and coefficients        everything
stream          the layer's input                                        layers that treat rows
                                                                         independently
==============  ======================================================  =========================

Under ``torch.compile``, ``torch.export``, ``torch.jit.trace``, the transforms of ``torch.func`` and
forward-mode differentiation every layer materializes: their own machinery traces plain operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kanmeta.errors import PlanError
from kanmeta.spec import LayerSpec

__all__ = ["EXECUTIONS", "Facts", "check", "check_layers", "choose", "default_budget"]

EXECUTIONS = ("auto", "materialize", "regenerate", "stream")

_LARGEST, _ENOUGH, _SMALLEST = 6_000_000, 1_300_000, 400_000  # bytes


def check(execution: str) -> None:
    """Raise PlanError if there is no such mode."""
    if execution not in EXECUTIONS:
        raise PlanError(f"execution={execution!r}: expected one of {', '.join(EXECUTIONS)}")


def check_layers(execution: str, layers: Mapping[str, LayerSpec]) -> None:
    """Raise PlanError if ``execution`` is not possible for one of ``layers``, by name."""
    never = [f"{n or '(root)'} ({s.class_name})" for n, s in layers.items() if s.rows == "never"]
    if execution == "stream" and never:
        raise PlanError(
            f"execution='stream': {', '.join(never)} cannot run in blocks of rows: each row "
            "depends on all rows, or the adapter does not say that it does not. Use 'auto', or "
            "set_execution(model, 'stream', layers=...) for the others"
        )


def default_budget(edges: int, dim_w: int, input_bytes: int = 0) -> int:
    """Bytes of scratch of a layer.

    A little more than its prompts take with gradients and Adam's state, 16 bytes an edge of one
    float32 number, up to 1.3 MB, with which calls cost little beside the work in them. More for
    fine grids, whose tiles are larger, for millions of edges and for large batches, beside which
    it is little. At most 6 MB, beyond which nothing is gained; at least 0.4 MB.
    """
    fine, batch = edges * dim_w // 3, input_bytes // 2
    return min(_LARGEST, max(_SMALLEST, fine, batch, min(_ENOUGH, 19 * edges)))


@dataclass(frozen=True)
class Facts:
    """What the choice depends on.

    Attributes:
        streams: whether the layer, in its present mode and for this input, treats rows
            independently.
        generated: bytes of (edges, hidden) and coefficients.
        intermediate: bytes that the library's forward keeps, roughly.
        allowed: bytes that a layer may keep under ``"auto"``: the budget that the user set.
    """

    streams: bool
    generated: int
    intermediate: int
    allowed: int


def choose(execution: str, facts: Facts) -> str:
    """Mode that ``execution`` stands for: ``"materialize"``, ``"regenerate"`` or ``"stream"``.

    ``"auto"`` lets autograd keep what is allowed, which is fastest, and streams otherwise.
    Where a layer cannot be streamed (batch norm in training), its coefficients are regenerated.
    """
    if execution == "materialize":
        return "materialize"
    if execution == "auto" and facts.generated + facts.intermediate <= facts.allowed:
        return "materialize"
    return "stream" if facts.streams and execution != "regenerate" else "regenerate"
