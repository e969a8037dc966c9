"""A linear layer whose basis is known, differentiable; by tiles, see :mod:`kanmeta.passes`.

Alive between forward and backward: the inputs, and at most a byte an edge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanmeta import blocks
from kanmeta.blocks import Cut, Tensors
from kanmeta.passes import Functions, Pass, Wanted
from kanmeta.stream import Sources
from kanmeta.tiles import Way, way_of

__all__ = ["Layer", "apply", "plain"]


@dataclass(frozen=True)
class Layer:
    """What is known of a layer.

    Attributes:
        functions: the basis, of the tensors given to :func:`apply`.
        input_major: the prompts are ``(in, out, dim_z)``, not ``(out, in, dim_z)``.
        activation: of the meta-learner.
        generate: sources -> coefficients ``(*edges, dim_w)``, differentiable.
        scratch: bytes.
    """

    functions: Functions
    input_major: bool
    activation: str
    generate: Callable[[Sources], Tensor]
    scratch: int


def apply(layer: Layer, arguments: Tensors, sources: Sources) -> Tensor:
    """Sum over inputs and functions, ``(N, in)`` to ``(N, out)``.

    Args:
        layer: the layer.
        arguments: inputs of the functions, each ``(N, in)``.
        sources: z, W1, b1, W2, b2; see :meth:`kanmeta.execution.Binding.sources`.
    """
    y = _Fused.apply(layer, len(arguments), *arguments, *sources)
    assert isinstance(y, Tensor)
    return y


def plain(layer: Layer, arguments: Tensors, w: Tensor) -> Tensor:
    """The same by operations that autograd differentiates any number of times."""
    every = slice(0, arguments[0].shape[1])
    values = [
        evaluate(arguments[i], every)[0]
        for evaluate, i in zip(layer.functions.each, layer.functions.arguments, strict=True)
    ]
    edges = "io" if layer.input_major else "oi"
    return torch.einsum(f"nki,{edges}k->no", torch.cat(values, 1), w)


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
        way = way_of(_matrices(sources), layer.activation)
        y, ctx.notes = _pass(layer, arguments, sources, way, None).forward(
            any(ctx.needs_input_grad)
        )
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        layer, number, wanted = ctx.layer, ctx.number, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # to be read once: checkpointing makes them anew
        arguments, sources = blocks.present(saved[:number]), saved[number:]
        each = layer, arguments, sources, gy, wanted[:number], wanted[number:]
        found = _differentiable(*each) if torch.is_grad_enabled() else _fast(*each, ctx.notes)
        return (None, None, *found)


def _matrices(sources: Sources) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    _, weight1, bias1, weight2, bias2 = sources[:5]
    assert weight1 is not None
    assert weight2 is not None
    return weight1, bias1, weight2, bias2


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
    leaves = tuple(
        None if s is None else s.detach().requires_grad_(g)
        for s, g in zip(sources, learned, strict=True)
    )
    with torch.enable_grad():  # of small matrices only
        way = way_of(_matrices(leaves), layer.activation)
    small = [*way.coefficients.tables, *(t for t in (way.project, way.shift) if t is not None)]
    with torch.no_grad():
        each = _pass(layer, arguments, sources, way, Wanted(wanted, any(learned)))
        gx, gz, sums = each.backward(gy, notes)
    pairs = [(t, g) for t, g in zip(small, sums, strict=True) if t.requires_grad]
    targets = [s for s in leaves[1:] if s is not None and s.requires_grad]
    found = iter(
        torch.autograd.grad(
            [t for t, _ in pairs], targets, [g for _, g in pairs], allow_unused=True
        )
        if targets
        else ()
    )
    rest = [next(found) if s is not None and s.requires_grad else None for s in leaves[1:]]
    return [*gx, gz if learned[0] else None, *rest]


def _differentiable(
    layer: Layer,
    arguments: Tensors,
    sources: Sources,
    gy: Tensor,
    wanted: Sequence[bool],
    learned: Sequence[bool],
) -> list[Tensor | None]:
    """The same with a graph, for derivatives of the derivative: in blocks of rows."""

    def function(rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
        return (plain(layer, rows, shared[0]),), ()

    w = layer.generate(sources)
    numbers = sum(a.shape[1] for a in arguments) * 10 * max(layer.functions.widths)
    step = max(1, layer.scratch // (numbers * w.element_size()))
    found = blocks.pull_back(
        function, Cut(0, step), (arguments, (w,)), ((gy,), ()), (wanted, (any(learned),))
    )
    rest: list[Tensor | None] = [None] * len(sources)
    gw = found[-1]
    if gw is not None:
        targets = [s for s, g in zip(sources, learned, strict=True) if g and s is not None]
        pulled = iter(torch.autograd.grad(w, targets, gw, create_graph=True))
        rest = [next(pulled) if g else None for g in learned]
    return [*found[:-1], *rest]
