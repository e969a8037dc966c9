"""Derivatives of any order of a layer by tiles: operations whose derivatives are the same again.

The gradients of the form B of :mod:`kanmeta.sweep` are three operations:

=========  ==========================  ======================================================
operation  what                        its gradients are, with what comes back in the blank
=========  ==========================  ======================================================
value      of g: sum a Phi^(r) W       those of B(x, a, _, W) of x, a, W
slopes     of a: Phi^(r) W g           those of B(x, _, g, W) of x, g, W
weights    of W: (a Phi^(r)) g         those of B(x, a, g, _) of x, a, g
=========  ==========================  ======================================================

So a derivative of a derivative is made of these three again, and of products a * slopes, which
autograd knows. Between calls only tensors of the size of inputs and outputs live.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanmeta.asked import Asked, Described, Gradients, Weights, wanted_sources
from kanmeta.blocks import Tensors, is_batched, present
from kanmeta.edges import Edges, Generated, Given
from kanmeta.errors import ExecutionError
from kanmeta.stream import Sources, pull_generated
from kanmeta.sweep import Form, Key, Wanted, sweep

__all__ = ["gradients"]


def gradients(
    layer: Described,
    form: Form,
    weights: Weights,
    asked: Asked,
    known: Mapping[Key, Tensor] | None = None,
) -> Gradients:
    """Gradients of B; differentiable where gradients are recorded, else in one sweep.

    Args:
        layer: whose functions B has.
        form: B.
        weights: W of B.
        asked: which gradients.
        known: slopes that were computed before.

    Raises:
        ExecutionError: what B is linear in is many tensors at once.
    """
    if is_batched(form.g, *form.factors.values(), *weights.tensors):
        raise ExecutionError(
            "second derivatives of a streamed layer were asked for many gradients at once "
            "(is_grads_batched=True, vectorize=True or torch.func.vmap around backward), which its "
            "tiles cannot do. Call kanmeta.set_execution(model, 'materialize') before the forward "
            "pass, or ask for one gradient at a time"
        )
    slopes = dict(known or {})
    steep = [(j, r + 1) for j, r in form.factors if asked.arguments[j]]
    missing = [key for key in dict.fromkeys([*asked.factors, *steep]) if key not in slopes]
    learn, g, learned = any(asked.weights), None, list[Tensor | None]()
    if torch.is_grad_enabled():
        if asked.g:
            g = _value(layer, form, weights)
        if missing:
            slopes.update(_slopes(layer, form, weights, missing))
        if learn:
            learned = _learned(layer, form, weights, asked.weights)
    else:
        edges = _edges(layer, form, weights)
        wanted = Wanted(asked.g, missing, learn)
        g, found = sweep(layer.slots, form, edges, wanted, _scratch(layer, form))
        slopes.update(found)
        learned = edges.gradients() if learn else []
    gx: list[Tensor | None] = [None] * len(form.arguments)
    for (j, r), a in form.factors.items():
        if asked.arguments[j]:
            slope = slopes[j, r + 1]
            term, so_far = slope if a is None else a * slope, gx[j]
            gx[j] = term if so_far is None else so_far + term
    picked = [t if w else None for t, w in zip(learned, asked.weights, strict=False)]
    picked += [None] * (len(asked.weights) - len(picked))
    return Gradients(gx, {key: slopes[key] for key in asked.factors}, g, picked)


_MOST = 1 << 20  # numbers: beyond, tiles leave the caches


def _scratch(layer: Described, form: Form) -> int:
    """Numbers: at least as many as an input has, of which these derivatives keep several alive."""
    x = form.arguments[0]
    return max(layer.scratch // x.element_size(), min(x.numel(), _MOST))


def _edges(layer: Described, form: Form, weights: Weights) -> Edges:
    if weights.given:
        return Given(present(weights.tensors)[0].detach())
    return Generated(
        weights.tensors, layer.input_major, layer.activation, _scratch(layer, form) // 4
    )


@dataclass(frozen=True)
class _Call:
    """What an operation is given beside tensors.

    Attributes:
        layer: whose functions B has.
        arguments: number of the x_j, the first of the tensors.
        keys: of the a_jr.
        given: whether W is.
    """

    layer: Described
    arguments: int
    keys: Sequence[Key]
    given: bool

    def weights(self, tensors: Sources) -> Weights:
        return Weights(tensors, self.given)

    def wanted(self, sources: Sources, needed: Sequence[bool]) -> Sequence[bool]:
        return needed if self.given else wanted_sources(sources, needed)


def _value(layer: Described, form: Form, weights: Weights) -> Tensor:
    call = _Call(layer, len(form.arguments), [*form.factors], weights.given)
    y = _Value.apply(call, *form.arguments, *form.factors.values(), *weights.tensors)
    assert isinstance(y, Tensor)
    return y


def _slopes(
    layer: Described, form: Form, weights: Weights, keys: Sequence[Key]
) -> dict[Key, Tensor]:
    # Those of the next order come nearly for free, and who differentiates asks for them next.
    following = [(j, r + 1) for j, r in keys]
    keys = [*dict.fromkeys([*keys, *following])]
    call = _Call(layer, len(form.arguments), keys, weights.given)
    found = _Slopes.apply(call, *form.arguments, form.g, *weights.tensors)
    return dict(zip(keys, found, strict=True))


def _learned(
    layer: Described, form: Form, weights: Weights, wanted: Sequence[bool]
) -> list[Tensor | None]:
    call = _Call(layer, len(form.arguments), [*form.factors], weights.given)
    gw = _Weights.apply(call, *form.arguments, *form.factors.values(), form.g)
    assert isinstance(gw, Tensor)
    if weights.given:
        return [gw]
    w = layer.generate(weights.tensors[:-1])
    gw = gw.permute(1, 2, 0) if layer.input_major else gw.permute(2, 1, 0)
    return pull_generated(w, gw, weights.tensors, wanted)


class _Value(torch.autograd.Function):
    """Gradient of g. Tensors: x_j, a_jr, W."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        form, weights = _Value.parts(call, tensors, None)
        wanted = Wanted(value=True)
        edges = _edges(call.layer, form, weights)
        y, _ = sweep(call.layer.slots, form, edges, wanted, _scratch(call.layer, form))
        assert y is not None
        return y

    @staticmethod
    def parts(
        call: _Call, tensors: Sequence[Tensor | None], g: Tensor | None
    ) -> tuple[Form, Weights]:
        n, m = call.arguments, call.arguments + len(call.keys)
        factors = dict(zip(call.keys, tensors[n:m], strict=True))
        return Form(present(tensors[:n]), factors, g), call.weights(tuple(tensors[m:]))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        call, needed = ctx.call, ctx.needs_input_grad[1:]
        form, weights = _Value.parts(call, ctx.saved_tensors, g)
        n, m = call.arguments, call.arguments + len(call.keys)
        factors = [key for key, w in zip(call.keys, needed[n:m], strict=True) if w]
        asked = Asked(needed[:n], call.wanted(weights.tensors, needed[m:]), factors)
        found = gradients(call.layer, form, weights, asked)
        each = [found.factors.get(key) for key in call.keys]
        return (None, *found.arguments, *each, *found.weights)


class _Slopes(torch.autograd.Function):
    """Gradients of a_jr. Tensors: x_j, g, W."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> Tensors:
        ctx.set_materialize_grads(False)
        n = call.arguments
        form, weights = Form(present(tensors[:n]), {}, tensors[n]), call.weights(tensors[n + 1 :])
        wanted = Wanted(slopes=call.keys)
        edges = _edges(call.layer, form, weights)
        _, found = sweep(call.layer.slots, form, edges, wanted, _scratch(call.layer, form))
        ctx.call = call
        # Backward multiplies with slopes of a next order only; the others would live for nothing.
        ctx.kept = [(j, r) for j, r in call.keys if (j, r - 1) in call.keys]
        ctx.save_for_backward(*tensors, *(found[key] for key in ctx.kept))
        return tuple(found[key] for key in call.keys)

    @staticmethod
    def backward(ctx: Any, *back: Tensor | None) -> tuple[Tensor | None, ...]:
        call, needed = ctx.call, ctx.needs_input_grad[1:]
        factors = {key: h for key, h in zip(call.keys, back, strict=True) if h is not None}
        if not factors:
            return (None,) * (1 + len(needed))
        n, saved = call.arguments, ctx.saved_tensors
        tensors, kept = saved[: len(needed)], saved[len(needed) :]
        form, weights = Form(present(tensors[:n]), factors, tensors[n]), tensors[n + 1 :]
        asked = Asked(needed[:n], call.wanted(weights, needed[n + 1 :]), g=needed[n])
        known = dict(zip(ctx.kept, kept, strict=True))
        found = gradients(call.layer, form, call.weights(weights), asked, known)
        return (None, *found.arguments, found.g, *found.weights)


class _Weights(torch.autograd.Function):
    """Gradient of W, ``(dim_w, in, out)``. Tensors: x_j, a_jr, g."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        form = _Weights.form(call, tensors)
        assert form.g is not None
        width = sum(slot.width for slot in call.layer.slots)
        shape = width, form.arguments[0].shape[1], form.g.shape[1]
        edges = Given(form.g.new_zeros(()).expand(shape))
        wanted = Wanted(edges=True)
        sweep(call.layer.slots, form, edges, wanted, _scratch(call.layer, form))
        (gw,) = edges.gradients()
        return form.g.new_zeros(shape) if gw is None else gw

    @staticmethod
    def form(call: _Call, tensors: Sequence[Tensor | None]) -> Form:
        n = call.arguments
        factors = dict(zip(call.keys, tensors[n:-1], strict=True))
        return Form(present(tensors[:n]), factors, tensors[-1])

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        call, needed = ctx.call, ctx.needs_input_grad[1:]
        n = call.arguments
        factors = [key for key, w in zip(call.keys, needed[n:-1], strict=True) if w]
        asked = Asked(needed[:n], [False], factors, needed[-1])
        form = _Weights.form(call, ctx.saved_tensors)
        found = gradients(call.layer, form, Weights((w,), given=True), asked)
        each = [found.factors.get(key) for key in call.keys]
        return (None, *found.arguments, *each, found.g)
