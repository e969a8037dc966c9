"""A linear layer whose basis is known, differentiable; by tiles, see :mod:`kanmeta.passes`.

Alive between forward and backward: the inputs, and at most a byte an edge, or four where the
meta-learner is wide.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kanmeta import blocks, closed, gpu
from kanmeta.asked import Asked, Described, Weights, marked, wanted_sources
from kanmeta.blocks import Tensors
from kanmeta.families import Family
from kanmeta.formulas import (
    Each,
    differentiable,
    gradients_of,
    parameters_of,
    split,
    with_parameters,
)
from kanmeta.functions import Functions
from kanmeta.passes import Pass, Wanted
from kanmeta.stream import Sources, leaves_of, matrices_of
from kanmeta.sweep import Form
from kanmeta.tiles import Way, pull_matrices, way_of

__all__ = ["Layer", "apply"]


@dataclass(frozen=True)
class Layer(Described):
    """What is known of a layer; without ``slots`` its functions are only differentiated as a whole.

    Attributes:
        functions: the basis, of the tensors given to :func:`apply`.
        families: finds their formulas, for the kernels of a GPU; None: these do not have all.
    """

    functions: Functions
    families: Callable[[], Sequence[Family] | None]

    def bound(self, parameters: Tensors) -> "Layer":
        """The same with other parameters of the basis."""
        if not parameters:
            return self
        return dataclasses.replace(self, functions=with_parameters(self.functions, parameters))


def apply(layer: Layer, arguments: Tensors, sources: Sources) -> Tensor:
    """Sum over inputs and functions, ``(N, in)`` to ``(N, out)``.

    Args:
        layer: the layer.
        arguments: inputs of the functions, each ``(N, in)``.
        sources: z, W1, b1, W2, b2; see :meth:`kanmeta.binding.Binding.sources`.
    """
    parameters = parameters_of(layer.functions.each)
    counts = len(arguments), len(parameters)
    y = _Fused.apply(layer, counts, *arguments, *parameters, *marked(sources))
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
    def forward(ctx: Any, layer: Layer, counts: tuple[int, int], *tensors: Tensor | None) -> Tensor:
        ctx.layer, ctx.counts = layer, counts
        ctx.save_for_backward(*tensors)
        arguments, parameters, sources = split(counts, tensors)
        kernels = _kernels(layer, arguments)
        if kernels is not None:
            return kernels.forward(arguments, sources[:-1])
        way = way_of(matrices_of(sources), layer.activation)
        each = _pass(layer.bound(parameters), arguments, sources, way, None)
        y, ctx.notes = each.forward(any(ctx.needs_input_grad))
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        counts, needed = ctx.counts, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # to be read once: checkpointing makes them anew
        arguments, parameters, sources = split(counts, saved)
        learned = wanted_sources(sources, needed[sum(counts) :])
        wanted = needed[: counts[0]], needed[counts[0] : sum(counts)], learned
        layer = ctx.layer.bound(parameters)
        if torch.is_grad_enabled() or blocks.is_batched(gy):  # for derivatives of the derivative
            inputs = arguments, parameters, sources
            return (None, None, *_differentiable(layer, inputs, gy, wanted))
        kernels = _kernels(layer, arguments)
        if kernels is not None:
            each = arguments, sources[:-1], gy, wanted[0], learned[:-1]
            return (None, None, *kernels.backward(*each), None)
        return (None, None, *_fast(layer, arguments, sources, gy, wanted, ctx.notes))


def _differentiable(
    layer: Layer, inputs: tuple[Tensors, Tensors, Sources], gy: Tensor, wanted: Each
) -> list[Tensor | None]:
    """Gradients of inputs with a graph."""
    arguments, _, sources = inputs
    if not layer.slots or blocks.is_batched(gy):
        known = layer.functions, layer.generate, layer.scratch
        return differentiable(partial(_plain, layer.input_major), *known, inputs, gy, wanted)
    form = Form(arguments, {(j, 0): None for j in range(len(arguments))}, gy)
    asked = Asked(wanted[0], wanted[2])
    found = closed.gradients(layer, form, Weights(sources), asked)
    return [*found.arguments, *found.weights]


def _plain(input_major: bool, functions: Functions, arguments: Tensors, w: Tensor) -> Tensor:
    """The sum by operations that autograd differentiates any number of times."""
    every = slice(0, arguments[0].shape[1])
    values = [
        evaluate(arguments[i], every)[0]
        for evaluate, i in zip(functions.each, functions.arguments, strict=True)
    ]
    edges = w.permute(2, 0, 1) if input_major else w.permute(2, 1, 0)
    return torch.cat(values, 1).flatten(1) @ edges.flatten(0, 1)


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
    wanted: Each,
    notes: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of arguments, parameters and sources by tiles."""
    learned = wanted[2]
    leaves = leaves_of(sources, learned)
    with torch.enable_grad():  # of small matrices only
        way = way_of(matrices_of(leaves), layer.activation)
    small = [*way.coefficients.tables, *(t for t in (way.project, way.shift) if t is not None)]
    with torch.no_grad():
        what = Wanted(wanted[0], any(learned), any(wanted[1]))
        each = _pass(layer, arguments, sources, way, what)
        gx, gz, sums = each.backward(gy, notes)
    own = gradients_of(layer.functions.each, len(gy))
    rest = pull_matrices(small, sums, leaves[1:])
    return [*gx, *own, gz if learned[0] else None, *rest]
