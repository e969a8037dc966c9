"""A convolution whose basis is known, differentiable; by tiles, see :mod:`kanmeta.conv_pass`.

Alive between forward and backward: the arguments of the basis, for most layers their input.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kanmeta import blocks
from kanmeta.blocks import Tensors
from kanmeta.coefficients import Coefficients
from kanmeta.conv_cut import Geometry
from kanmeta.conv_pass import Pass, weight_parts
from kanmeta.formulas import (
    Each,
    differentiable,
    gradients_of,
    parameters_of,
    split,
    with_parameters,
)
from kanmeta.functions import Functions
from kanmeta.passes import Wanted
from kanmeta.stream import Sources, leaves_of, matrices_of
from kanmeta.tiles import dense, pull_matrices

__all__ = ["Layer", "apply"]


@dataclass(frozen=True)
class Layer:
    """What is known of a layer, or of one of its groups.

    Attributes:
        functions: the basis, of the tensors given to :func:`apply`.
        geometry: of the convolution.
        activation: of the meta-learner.
        generate: sources -> coefficients ``(out, in, *kernel, dim_w)``, differentiable.
        scratch: bytes.
    """

    functions: Functions
    geometry: Geometry
    activation: str
    generate: Callable[[Sources], Tensor]
    scratch: int

    def bound(self, parameters: Tensors) -> "Layer":
        """The same with other parameters of the basis."""
        return dataclasses.replace(self, functions=with_parameters(self.functions, parameters))


def apply(layer: Layer, arguments: Tensors, sources: Sources) -> Tensor:
    """Convolve: ``(N, in, *space)`` to ``(N, out, *space)``.

    Args:
        layer: the layer.
        arguments: inputs of the functions, each ``(N, in, *space)``.
        sources: z, W1, b1, W2, b2; see :meth:`kanmeta.binding.Binding.sources`.
    """
    parameters = parameters_of(layer.functions.each)
    counts = len(arguments), len(parameters)
    y = _Convolved.apply(layer, counts, *arguments, *parameters, *sources)
    assert isinstance(y, Tensor)
    return y


def _plain(geometry: Geometry, functions: Functions, arguments: Tensors, w: Tensor) -> Tensor:
    """The same by operations that autograd differentiates any number of times."""
    values = [
        evaluate(arguments[i].flatten(1), slice(0, 1))[0]
        for evaluate, i in zip(functions.each, functions.arguments, strict=True)
    ]
    basis = torch.cat(values, 1).reshape(len(arguments[0]), -1, *arguments[0].shape[2:])
    outputs, inputs = w.shape[:2]
    edges = w.reshape(outputs, inputs, -1, w.shape[-1]).permute(3, 0, 1, 2).contiguous()
    parts = weight_parts(edges, functions.widths, geometry.taps)
    weight = torch.cat([part.flatten(1, 2).flatten(2) for part in parts], 1)
    kernel = weight.view(outputs, -1, *geometry.kernel)
    y: Tensor = torch.ops.aten.convolution(basis, kernel, None, *geometry.options)
    return y


class _Convolved(torch.autograd.Function):
    """See :func:`apply`."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, counts: tuple[int, int], *tensors: Tensor | None) -> Tensor:
        ctx.layer, ctx.counts = layer, counts
        ctx.save_for_backward(*tensors)
        arguments, parameters, sources = split(counts, tensors)
        coefficients = dense(matrices_of(sources), layer.activation)
        pass_ = _pass(layer.bound(parameters), arguments, sources, coefficients, None)
        ctx.notes = pass_.notes  # a byte an edge
        return pass_.forward()

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        counts, wanted = ctx.counts, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # to be read once: checkpointing makes them anew
        arguments, parameters, sources = split(counts, saved)
        ends = counts[0], sum(counts)
        kinds = wanted[: ends[0]], wanted[ends[0] : ends[1]], wanted[ends[1] :]
        layer = ctx.layer.bound(parameters)
        if torch.is_grad_enabled() or blocks.is_batched(gy):
            known = layer.functions, layer.generate, layer.scratch
            inputs = arguments, parameters, sources
            found = differentiable(partial(_plain, layer.geometry), *known, inputs, gy, kinds)
        else:
            found = _fast(layer, arguments, sources, gy, kinds, ctx.notes)
        return (None, None, *found)


def _pass(
    layer: Layer,
    arguments: Tensors,
    sources: Sources,
    coefficients: Coefficients,
    wanted: Wanted | None,
    notes: Tensor | None = None,
) -> Pass:
    z = sources[0]
    assert z is not None
    functions, geometry = layer.functions, layer.geometry
    return Pass(functions, geometry, arguments, z, coefficients, layer.scratch, wanted, notes)


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
        coefficients = dense(matrices_of(leaves), layer.activation)
    with torch.no_grad():
        what = Wanted(wanted[0], any(learned), any(wanted[1]))
        each = _pass(layer, arguments, sources, coefficients, what, notes)
        gx, gz, sums = each.backward(gy)
    rest = pull_matrices(coefficients.tables, sums, leaves[1:])
    own = gradients_of(layer.functions.each, len(arguments[0]))
    return [*gx, *own, gz if learned[0] else None, *rest]
