"""A linear layer whose basis is known, differentiable; by tiles, see :mod:`kanmeta.passes`.

Alive between forward and backward: the inputs, and at most a byte an edge, or four where the
meta-learner is wide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanmeta import blocks, closed, gpu
from kanmeta.blocks import Tensors
from kanmeta.closed import Described
from kanmeta.families import Family
from kanmeta.passes import Functions, Pass, Wanted
from kanmeta.stream import Sources, leaves_of, matrices_of
from kanmeta.sweep import Form
from kanmeta.tiles import Way, pull_matrices, way_of

__all__ = ["Layer", "apply"]


@dataclass(frozen=True)
class Layer(Described):
    """What is known of a layer.

    Attributes:
        functions: the basis, of the tensors given to :func:`apply`.
        families: finds their formulas, for the kernels of a GPU; None: these do not have all.
    """

    functions: Functions
    families: Callable[[], Sequence[Family] | None]


def apply(layer: Layer, arguments: Tensors, sources: Sources) -> Tensor:
    """Sum over inputs and functions, ``(N, in)`` to ``(N, out)``.

    Args:
        layer: the layer.
        arguments: inputs of the functions, each ``(N, in)``.
        sources: z, W1, b1, W2, b2; see :meth:`kanmeta.binding.Binding.sources`.
    """
    y = _Fused.apply(layer, len(arguments), *arguments, *closed.marked(sources))
    assert isinstance(y, Tensor)
    return y


def _pass(
    layer: Layer, arguments: Tensors, sources: Sources, way: Way, wanted: Wanted | None
) -> Pass:
    z = sources[0]
    assert z is not None
    return Pass(layer.functions, arguments, z, layer.input_major, way, layer.scratch, wanted)


class _Fused(torch.autograd.Function):
    """See :func:`apply`."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, number: int, *tensors: Tensor | None) -> Tensor:
        ctx.layer, ctx.number = layer, number
        ctx.save_for_backward(*tensors)
        arguments, sources = blocks.present(tensors[:number]), tensors[number:]
        kernels = _kernels(layer, arguments)
        if kernels is not None:
            return kernels.forward(arguments, sources[:-1])
        way = way_of(matrices_of(sources), layer.activation)
        y, ctx.notes = _pass(layer, arguments, sources, way, None).forward(
            any(ctx.needs_input_grad)
        )
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        layer, number, wanted = ctx.layer, ctx.number, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # to be read once: checkpointing makes them anew
        arguments, sources = blocks.present(saved[:number]), saved[number:]
        learned = closed.wanted_sources(sources, wanted[number:])
        if torch.is_grad_enabled():  # for derivatives of the derivative
            form = Form(arguments, {(j, 0): None for j in range(number)}, gy)
            asked = closed.Asked(wanted[:number], learned)
            of_all = closed.gradients(layer, form, closed.Weights(sources), asked)
            return (None, None, *of_all.arguments, *of_all.weights)
        kernels = _kernels(layer, arguments)
        if kernels is not None:
            each = arguments, sources[:-1], gy, wanted[:number], learned[:-1]
            return (None, None, *kernels.backward(*each), None)
        found = _fast(layer, arguments, sources, gy, wanted[:number], learned, ctx.notes)
        return (None, None, *found)


def _kernels(layer: Layer, arguments: Tensors) -> gpu.Kernels | None:
    """What runs the layer on a GPU; None where that is not possible."""
    families = layer.families() if all(gpu.usable(a) for a in arguments) else None
    if families is None:
        return None
    at = layer.functions.arguments
    return gpu.Kernels(families, at, layer.input_major, layer.generate, layer.scratch)


def _fast(
    layer: Layer,
    arguments: Tensors,
    sources: Sources,
    gy: Tensor,
    wanted: Sequence[bool],
    learned: Sequence[bool],
    notes: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of arguments and sources by tiles."""
    leaves = leaves_of(sources, learned)
    with torch.enable_grad():  # of small matrices only
        way = way_of(matrices_of(leaves), layer.activation)
    small = [*way.coefficients.tables, *(t for t in (way.project, way.shift) if t is not None)]
    with torch.no_grad():
        each = _pass(layer, arguments, sources, way, Wanted(wanted, any(learned)))
        gx, gz, sums = each.backward(gy, notes)
    rest = pull_matrices(small, sums, leaves[1:])
    return [*gx, gz if learned[0] else None, *rest]
