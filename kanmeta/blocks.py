"""Functions that treat rows independently, run in blocks of rows, with derivatives of any order.

A *block function* f takes tensors with rows and tensors that all rows share, and returns tensors
with rows and tensors that are sums over rows. It is run block by block without a graph. Its
backward is a block function again, made from f by autograd within one block: rows and gradients
with rows in, gradients of the rows and sums of the gradients of what is shared out. So nothing
but inputs and outputs lives between blocks, in the second derivative as in the first.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BlockFunction",
    "Cut",
    "Tensors",
    "apply",
    "derivative",
    "is_batched",
    "present",
    "pull_back",
    "run",
    "slices",
]

Tensors = tuple[Tensor, ...]

BlockFunction = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]
"""(with rows, shared) -> (with rows, sums over rows)."""


def _as_it_is() -> AbstractContextManager[object]:
    return nullcontext()


@dataclass
class Cut:
    """How rows are cut in blocks.

    Attributes:
        axis: of the rows, in all tensors that have them.
        step: rows in a block.
        context: entered around every run over all blocks; it puts autocast and the state of random
            number generators back to what they were in the first.
    """

    axis: int
    step: int
    context: Callable[[], AbstractContextManager[object]] = field(default=_as_it_is)


def slices(number: int, step: int) -> list[slice]:
    """``range(number)`` in parts of ``step``."""
    return [slice(start, min(start + step, number)) for start in range(0, number, step)]


def run(f: BlockFunction, cut: Cut, rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
    """Run ``f`` block by block."""
    number = rows[0].shape[cut.axis]
    whole: list[Tensor] = []
    sums: list[Tensor] = []
    with cut.context():
        for start in range(0, max(number, 1), cut.step):
            length = min(cut.step, number - start)
            parts, terms = f(tuple(t.narrow(cut.axis, start, length) for t in rows), shared)
            if length == number:
                return parts, terms
            if start == 0:
                whole = [
                    p.new_empty(*p.shape[: cut.axis], number, *p.shape[cut.axis + 1 :])
                    for p in parts
                ]
                sums = list(terms)
            elif start == cut.step:  # the first terms may be views of what others hold
                sums = [total + term for total, term in zip(sums, terms, strict=True)]
            else:
                for total, term in zip(sums, terms, strict=True):
                    total += term
            for tensor, part in zip(whole, parts, strict=True):
                tensor.narrow(cut.axis, start, length).copy_(part)
            del parts, terms
    return tuple(whole), tuple(sums)


def derivative(
    f: BlockFunction,
    counts: tuple[int, int],
    given: tuple[Sequence[bool], Sequence[bool]],
    wanted: tuple[Sequence[bool], Sequence[bool]],
    used: set[int],
) -> BlockFunction:
    """Block function of the gradients of ``f``.

    Args:
        f: what to differentiate.
        counts: number of its inputs (with rows, shared).
        given: which of its outputs (with rows, sums) have a gradient.
        wanted: which of its inputs (with rows, shared) need one.
        used: gets the positions, among those wanted, of the inputs that outputs depend on.

    Returns:
        Takes the inputs of ``f``, each kind followed by the gradients of the outputs of that kind
        that are given; returns the wanted gradients.
    """

    def pull(rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
        n_rows, n_shared = counts
        higher = torch.is_grad_enabled()  # inside the derivative of this function
        chosen = [*wanted[0], *wanted[1]]
        inputs = [
            t if higher and t.requires_grad else t.detach().requires_grad_(w)
            for t, w in zip((*rows[:n_rows], *shared[:n_shared]), chosen, strict=True)
        ]
        with torch.enable_grad():
            parts, sums = f(tuple(inputs[:n_rows]), tuple(inputs[n_rows:]))
        outputs = [t for t, g in zip((*parts, *sums), (*given[0], *given[1]), strict=True) if g]
        gradients = [*rows[n_rows:], *shared[n_shared:]]
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        targets = [t for t, w in zip(inputs, chosen, strict=True) if w]
        found: Sequence[Tensor | None] = [None] * len(targets)
        if pairs:
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                targets,
                [g for _, g in pairs],
                create_graph=higher,
                allow_unused=True,
            )
        used.update(i for i, g in enumerate(found) if g is not None)
        results = [
            torch.zeros_like(t) if g is None else g for g, t in zip(found, targets, strict=True)
        ]
        split = sum(wanted[0])
        return tuple(results[:split]), tuple(results[split:])

    return pull


def apply(f: BlockFunction, cut: Cut, rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
    """Run ``f`` block by block; differentiable in all its inputs, any number of times."""
    sizes: list[int] = []
    outputs = _Blocked.apply(f, cut, len(rows), sizes, *rows, *shared)
    return outputs[: sizes[0]], outputs[sizes[0] :]


class _Blocked(torch.autograd.Function):
    """See :func:`apply`."""

    @staticmethod
    def forward(
        ctx: Any, f: BlockFunction, cut: Cut, number: int, sizes: list[int], *tensors: Tensor
    ) -> Tensors:
        ctx.set_materialize_grads(False)
        ctx.f, ctx.cut, ctx.number = f, cut, number
        ctx.save_for_backward(*tensors)
        rows, sums = run(f, cut, tensors[:number], tensors[number:])
        ctx.split = len(rows)
        sizes.append(len(rows))
        return (*rows, *sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, number = ctx.saved_tensors, ctx.number
        found = pull_back(
            ctx.f,
            ctx.cut,
            (tensors[:number], tensors[number:]),
            (gradients[: ctx.split], gradients[ctx.split :]),
            (ctx.needs_input_grad[4 : 4 + number], ctx.needs_input_grad[4 + number :]),
        )
        return (None, None, None, None, *found)


def pull_back(
    f: BlockFunction,
    cut: Cut,
    inputs: tuple[Tensors, Tensors],
    gradients: tuple[Sequence[Tensor | None], Sequence[Tensor | None]],
    wanted: tuple[Sequence[bool], Sequence[bool]],
) -> list[Tensor | None]:
    """Gradients of the inputs of ``f``; None where not wanted or 0. Pairs: (with rows, shared).

    Many gradients at once (``is_grads_batched``) are pulled back in one block: torch cannot write
    them in parts of a tensor.
    """
    if is_batched(*gradients[0], *gradients[1]):
        cut = Cut(cut.axis, max(1, inputs[0][0].shape[cut.axis]), cut.context)
    given = tuple([g is not None for g in side] for side in gradients)
    present = [tuple(g for g in side if g is not None) for side in gradients]
    used: set[int] = set()
    counts = len(inputs[0]), len(inputs[1])
    pull = derivative(f, counts, (given[0], given[1]), wanted, used)
    parts, sums = apply(pull, cut, inputs[0] + present[0], inputs[1] + present[1])
    found = [g if i in used else None for i, g in enumerate((*parts, *sums))]
    results = iter(found)
    return [next(results) if w else None for w in (*wanted[0], *wanted[1])]


def is_batched(*gradients: Tensor | None) -> bool:
    """Whether these are many gradients at once, as ``is_grads_batched`` and vmap give them."""
    kinds = torch._C._functorch
    return any(
        g is not None and (kinds.is_legacy_batchedtensor(g) or kinds.is_batchedtensor(g))
        for g in gradients
    )


def present(tensors: Sequence[Tensor | None]) -> Tensors:
    """The same tensors, none of which is None."""
    assert all(t is not None for t in tensors)
    return tuple(t for t in tensors if t is not None)
