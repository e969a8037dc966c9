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

from kanmeta.errors import PlanError
from kanmeta.spec import LayerSpec

__all__ = [
    "EXECUTIONS",
    "UNNOTICED",
    "check",
    "check_layers",
    "convolution_budget",
    "default_budget",
    "is_left_to_autograd",
    "otherwise",
]

UNNOTICED = 64_000_000
"""Bytes that a layer may keep under ``"auto"`` if the user set no budget."""

EXECUTIONS = ("auto", "materialize", "regenerate", "stream")

_LARGEST, _ENOUGH, _SMALLEST = 6_000_000, 1_300_000, 400_000  # bytes
_LARGEST_CONVOLUTION = 16_000_000
_ON_GPU = 64_000_000


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


def default_budget(edges: int, dim_w: int, input_bytes: int = 0, on_gpu: bool = False) -> int:
    """Bytes of scratch of a layer.

    A little more than its prompts take with gradients and Adam's state, 16 bytes an edge of one
    float32 number, up to 1.3 MB, with which calls cost little beside the work in them. More for
    fine grids, whose tiles are larger, for millions of edges and for large batches, beside which
    it is little. At most 6 MB, beyond which nothing is gained; at least 0.4 MB. On a GPU 64 MB,
    because there a call costs more than the work on a small tile; tiles are never larger than the
    layer.
    """
    if on_gpu:
        return _ON_GPU
    fine, batch = edges * dim_w // 3, input_bytes // 2
    return min(_LARGEST, max(_SMALLEST, fine, batch, min(_ENOUGH, 19 * edges)))


def convolution_budget(edges: int, outputs: int) -> int:
    """Bytes of scratch of a convolution in tiles: what is not needed at the same time as they are.

    A step of Adam takes 8 bytes an edge; after the convolution, a norm and an activation keep, with
    what is added up, three times its outputs. At most 16 MB: larger tiles are no faster.

    Args:
        edges: of the layer.
        outputs: their bytes.
    """
    return min(_LARGEST_CONVOLUTION, max(_SMALLEST, 8 * edges, 3 * outputs))


def is_left_to_autograd(execution: str, kept: int, budget: int | None) -> bool:
    """Whether a layer materializes, whatever it could do.

    Args:
        execution: the mode that was asked for. ``"auto"`` lets autograd keep what is allowed,
            which is exact to the bit and, for what is small, fastest.
        kept: bytes of (edges, hidden), of coefficients and of what the library's forward keeps.
        budget: the user's; None: :data:`UNNOTICED` is allowed.
    """
    allowed = UNNOTICED if budget is None else budget
    return execution == "materialize" or (execution == "auto" and kept <= allowed)


def otherwise(execution: str, streams: bool, budget: int | None) -> str:
    """Mode of a layer that is not left to autograd.

    Where a layer cannot be streamed, its coefficients are regenerated, which takes longer: not
    under ``"auto"`` without a budget, where nobody asked for less memory.

    Args:
        execution: the mode that was asked for.
        streams: whether the layer, in its present mode and for this input, treats rows
            independently.
        budget: the user's.
    """
    if streams and execution != "regenerate":
        return "stream"
    return "materialize" if execution == "auto" and budget is None else "regenerate"
