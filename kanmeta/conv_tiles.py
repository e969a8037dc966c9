"""A convolution whose basis is known, differentiable; by tiles, see :mod:`kanmeta.conv_pass`.

Alive between forward and backward: the arguments of the basis, for most layers their input.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanmeta import blocks
from kanmeta.blocks import Cut, Tensors
from kanmeta.coefficients import Coefficients
from kanmeta.conv_basis import Formula, parameters_of, with_parameters
from kanmeta.conv_cut import Geometry
from kanmeta.conv_pass import Pass, Wanted, weight_parts
from kanmeta.stream import Sources, leaves_of, matrices_of, pull_generated
from kanmeta.tiles import dense, pull_matrices
from kanmeta.values import Functions

__all__ = ["Layer", "apply", "plain"]


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
        each = with_parameters(self.functions.each, parameters)
        return dataclasses.replace(self, functions=dataclasses.replace(self.functions, each=each))


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


def plain(layer: Layer, arguments: Tensors, w: Tensor) -> Tensor:
    """The same by operations that autograd differentiates any number of times."""
    functions, geometry = layer.functions, layer.geometry
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
        arguments, parameters, sources = _split(counts, tensors)
        coefficients = dense(matrices_of(sources), layer.activation)
        pass_ = _pass(layer.bound(parameters), arguments, sources, coefficients, None)
        ctx.notes = pass_.notes  # a byte an edge
        return pass_.forward()

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        counts, wanted = ctx.counts, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # to be read once: checkpointing makes them anew
        arguments, parameters, sources = _split(counts, saved)
        ends = counts[0], sum(counts)
        kinds = wanted[: ends[0]], wanted[ends[0] : ends[1]], wanted[ends[1] :]
        layer = ctx.layer.bound(parameters)
        if torch.is_grad_enabled():
            found = _differentiable(layer, arguments, parameters, sources, gy, kinds)
        else:
            found = _fast(layer, arguments, sources, gy, kinds, ctx.notes)
        return (None, None, *found)


_Wanted = tuple[Sequence[bool], Sequence[bool], Sequence[bool]]
"""Of which arguments, parameters and sources gradients are wanted."""


def _split(
    counts: tuple[int, int], tensors: Sequence[Tensor | None]
) -> tuple[Tensors, Tensors, Sources]:
    present = blocks.present(tensors[: sum(counts)])
    return present[: counts[0]], present[counts[0] :], tuple(tensors[sum(counts) :])


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
    wanted: _Wanted,
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
    formulas = [f for f in layer.functions.each if isinstance(f, Formula)]
    own = [g for f in formulas for g in f.gradients]
    if not len(arguments[0]):  # nothing was pulled back
        own = [torch.zeros_like(t) for t in parameters_of(formulas)]
    return [*gx, *own, gz if learned[0] else None, *rest]


def _differentiable(
    layer: Layer,
    arguments: Tensors,
    parameters: Tensors,
    sources: Sources,
    gy: Tensor,
    wanted: _Wanted,
) -> list[Tensor | None]:
    """The same with a graph, for derivatives of the derivative: in blocks of images."""

    def function(rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
        return (plain(layer.bound(shared[:-1]), rows, shared[-1]),), ()

    learned = wanted[2]
    w = layer.generate(sources)
    numbers = sum(a[:1].numel() for a in arguments) * 10 * max(layer.functions.widths)
    step = max(1, layer.scratch // (max(numbers, 1) * w.element_size()))
    found = blocks.pull_back(
        function,
        Cut(0, step),
        (arguments, (*parameters, w)),
        ((gy,), ()),
        (wanted[0], (*wanted[1], any(learned))),
    )
    rest: list[Tensor | None] = [None] * len(sources)
    gw = found[-1]
    if gw is not None:
        rest = pull_generated(w, gw, sources, learned)
    return [*found[:-1], *rest]
