"""Generating coefficients without keeping the hidden activations, (edges, hidden), for backward.

The forward runs over blocks of edges and keeps prompts and the meta-learner's matrices only; the
backward generates each block again. Results and gradients are those of ``MetaLearner.forward``.

One number a prompt and relu make M piecewise linear: w = A[p] + C[p] z, where p counts the kinks
-b1/W1 below z. The tables A and C, ``(pieces, dim_w)``, take the place of the hidden layer: a
look-up and a multiplication an edge and coefficient, whatever ``hidden`` is.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kanmeta.blocks import is_batched, slices
from kanmeta.meta import ACTIVATIONS

__all__ = ["SLOPES", "from_matrices", "kinks", "no_autocast", "tables"]


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Context without autocast: what stands in for a Parameter keeps its dtype, as that does."""
    if device_type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _slope_of_gelu(a: Tensor) -> Tensor:
    density = torch.exp(-0.5 * a * a) * 0.3989422804014327  # 1 / sqrt(2 pi)
    return 0.5 * (1 + torch.erf(a * 0.7071067811865476)) + a * density


def _slope_of_silu(a: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 + a * (1 - s))


SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda a: (a > 0).to(a),
    "gelu": _slope_of_gelu,
    "silu": _slope_of_silu,
    "tanh": lambda a: 1 - torch.tanh(a).square(),
    "identity": torch.ones_like,
}
"""Derivatives of the activations, themselves differentiable."""


def from_matrices(
    z: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    activation: str,
    scratch: int,
) -> Tensor:
    """Return W2 a(W1 z + b1) + b2, ``(*, dim_w)``, keeping only what is small for backward.

    Args:
        z: prompts, ``(*, dim_z)``.
        weight1, bias1, weight2, bias2: see :meth:`kanmeta.MetaLearner.folded`.
        activation: a key of :data:`kanmeta.meta.ACTIVATIONS`.
        scratch: bytes that a block of edges may take.
    """
    flat = z.reshape(-1, z.shape[-1])
    exact = z.dtype in (torch.float32, torch.float64)  # enough for kinks and their neighbours
    if z.shape[-1] == 1 and activation == "relu" and exact:
        bounds = kinks(weight1, bias1)
        slopes, starts = tables(weight1, bias1, weight2, bias2, bounds)
        w = _Piecewise.apply(flat[:, 0], bounds, slopes, starts, scratch)
    else:
        w = _Perceptron.apply(flat, weight1, bias1, weight2, bias2, activation, scratch)
    assert isinstance(w, Tensor)
    return w.view(*z.shape[:-1], w.shape[-1])


def _blocks(edges: int, width: int, like: Tensor, scratch: int) -> list[slice]:
    """Cut ``edges`` in blocks whose tensors of ``width`` numbers an edge fit in ``scratch``."""
    step = max(256, scratch // max(1, width * like.element_size()))
    return slices(edges, step)


class _Perceptron(torch.autograd.Function):
    """W2 a(W1 z + b1) + b2 for z of shape ``(E, dim_z)``, in blocks of edges."""

    @staticmethod
    def forward(
        z: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        activation: str,
        scratch: int,
    ) -> Tensor:
        w = z.new_empty(len(z), weight2.shape[0])
        act = ACTIVATIONS[activation]
        for block in _blocks(len(z), 2 * len(weight1), z, scratch):
            w[block] = F.linear(act(F.linear(z[block], weight1, bias1)), weight2, bias2)
        return w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, weight1, bias1, weight2, bias2, ctx.activation, ctx.scratch = inputs
        ctx.save_for_backward(z, weight1, bias1, weight2)
        ctx.has_bias2 = bias2 is not None

    @staticmethod
    def backward(ctx: Any, gw: Tensor) -> tuple[Tensor | None, ...]:
        z, weight1, bias1, weight2 = ctx.saved_tensors
        with no_autocast(z.device.type):
            return _Perceptron._pull(ctx, z, weight1, bias1, weight2, gw)

    @staticmethod
    def _pull(
        ctx: Any, z: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, gw: Tensor
    ) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        whole = torch.is_grad_enabled()  # blocks written in place have no second derivative
        width = 4 * len(weight1) + weight2.shape[0]
        blocks = [slice(None)] if whole else _blocks(len(z), width, z, ctx.scratch)
        total: list[Tensor | None] = [None] * 5
        rows: list[Tensor] = []
        for block in blocks:
            a = F.linear(z[block], weight1, bias1)
            g = gw[block]
            ga = (g @ weight2) * SLOPES[ctx.activation](a)
            if wanted[0]:
                rows.append(ga @ weight1)
            parts = (
                None,
                ga.T @ z[block] if wanted[1] else None,
                ga.sum(0) if wanted[2] and bias1 is not None else None,
                g.T @ ACTIVATIONS[ctx.activation](a) if wanted[3] else None,
                g.sum(0) if wanted[4] and ctx.has_bias2 else None,
            )
            total = [
                p if t is None else t if p is None else t + p
                for t, p in zip(total, parts, strict=True)
            ]
        total[0] = (torch.cat(rows) if len(rows) != 1 else rows[0]) if wanted[0] and rows else None
        return (*total, None, None)


def kinks(weight1: Tensor, bias1: Tensor | None) -> Tensor:
    """Bounds of the pieces of M, ascending: each kink and its lower neighbour, ``(2 hidden,)``.

    The neighbours give numbers that lie exactly on a kink a piece of their own, in which the
    unit is off and gets no gradient, as torch defines the slope of relu at 0.
    """
    with torch.no_grad():
        at = _crossings(weight1[:, 0], bias1)
        return torch.cat([at, torch.nextafter(at, at.new_full((), -torch.inf))]).sort().values


def _crossings(weight: Tensor, bias1: Tensor | None) -> Tensor:
    """Where each unit goes on or off, ``(hidden,)``; infinite if it never does."""
    at = torch.zeros_like(weight) if bias1 is None else -bias1 / weight
    return torch.where(weight == 0, torch.inf, at)


def tables(
    weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, bounds: Tensor
) -> tuple[Tensor, Tensor]:
    """Slopes C and starts A of the pieces, ``(2 hidden + 1, dim_w)`` each.

    Differentiable in the four matrices.
    """
    weight = weight1[:, 0]
    with torch.no_grad():
        own = torch.bucketize(_crossings(weight, bias1), bounds)
        # What is not a number belongs to every piece.
        first = torch.where((weight > 0) & (own < len(bounds)), own + 1, 0)
        falls = (weight < 0)[:, None]
        constant = weight == 0
        off = constant if bias1 is None else constant & ~(bias1 > 0)

    def sums(factor: Tensor) -> Tensor:
        # Of what the units that are on add, piece after piece, in double precision: it is added
        # and taken off again.
        share = torch.where(off, 0, factor)[:, None] * weight2.T
        wide = share if share.device.type == "mps" else share.double()
        steps = wide.new_zeros(len(bounds) + 1, wide.shape[1])
        steps = steps.index_add(0, first, wide).index_add(0, own, torch.where(falls, -wide, 0))
        return steps.cumsum(0).to(share)

    slopes = sums(weight)
    starts = torch.zeros_like(slopes) if bias1 is None else sums(bias1)
    return slopes, starts if bias2 is None else starts + bias2


class _Piecewise(torch.autograd.Function):
    """A[p] + C[p] z for z of shape ``(E,)``, with p = number of ``bounds`` below z."""

    @staticmethod
    def forward(z: Tensor, bounds: Tensor, slopes: Tensor, starts: Tensor, scratch: int) -> Tensor:
        w = z.new_empty(len(z), slopes.shape[1])
        for block in _blocks(len(z), 2 * slopes.shape[1] + 4, z, scratch):
            piece, out = torch.bucketize(z[block], bounds), w[block]
            torch.index_select(slopes, 0, piece, out=out)
            out.mul_(z[block].unsqueeze(1)).add_(starts.index_select(0, piece))
        return w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, bounds, slopes, _, ctx.scratch = inputs
        ctx.save_for_backward(z, bounds, slopes)

    @staticmethod
    def backward(ctx: Any, gw: Tensor) -> tuple[Tensor | None, ...]:
        z, bounds, slopes = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batched(gw):
            piece = torch.bucketize(z.detach(), bounds)
            zero = torch.zeros_like(slopes)
            gz = (slopes.index_select(0, piece) * gw).sum(1)
            g_slopes = zero.index_add(0, piece, gw * z[:, None])
            return gz, None, g_slopes, zero.index_add(0, piece, gw), None
        gz = torch.empty_like(z)
        g_slopes, g_starts = torch.zeros_like(slopes), torch.zeros_like(slopes)
        for block in _blocks(len(z), 2 * slopes.shape[1] + 4, z, ctx.scratch):
            piece, g = torch.bucketize(z[block], bounds), gw[block]
            g_starts.index_add_(0, piece, g)
            g_slopes.index_add_(0, piece, g * z[block].unsqueeze(1))
            gz[block] = slopes.index_select(0, piece).mul_(g).sum(1)
        return gz, None, g_slopes, g_starts, None
