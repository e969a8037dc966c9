"""Basis functions by a formula that autograd differentiates, maybe of tensors that are trained.

Their gradients are taken within one tile; derivatives of these, of any order, in blocks of rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kanmeta import blocks
from kanmeta.blocks import Cut, Tensors
from kanmeta.functions import Evaluate, Functions, Pull, no_pull
from kanmeta.scratch import Scratch
from kanmeta.stream import Sources, pull_generated

__all__ = [
    "Each",
    "Formula",
    "differentiable",
    "gradients_of",
    "parameters_of",
    "split",
    "with_parameters",
]


class Formula(Evaluate):
    """Functions by a formula that autograd differentiates, within one tile.

    Args:
        function: ``(x (rows, inputs), *parameters)`` to ``(rows, functions, inputs)``.
        parameters: tensors, maybe trained, that the functions depend on.
        own: how many of them, the first ones, have for each input a row of its own.

    Attributes:
        gradients: of the parameters, added up over all tiles that were pulled back.
    """

    def __init__(
        self, function: Callable[..., Tensor], parameters: Tensors = (), own: int = 0
    ) -> None:
        """See the class."""
        self.function, self.parameters, self.own = function, parameters, own
        self.gradients: list[Tensor | None] = [None] * len(parameters)

    def extra(self, slopes: bool) -> int:
        """See :class:`Evaluate`: a guess."""
        return 40

    def __call__(
        self, x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        """See :class:`Evaluate`."""
        here = [p[columns] if i < self.own else p for i, p in enumerate(self.parameters)]
        if out is None:
            return self.function(x, *here), no_pull
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (x, *here)]
            values = self.function(*leaves)
        out.copy_(values.detach())

        def pull(g: Tensor) -> Tensor:
            gx, *found = torch.autograd.grad(values, leaves, g, allow_unused=True)
            for i, new in enumerate(found):
                if new is not None:
                    self._add(i, new, columns)
            return torch.zeros_like(x) if gx is None else gx

        return out, pull

    def _add(self, i: int, new: Tensor, columns: slice) -> None:
        old = self.gradients[i]
        if i >= self.own:
            self.gradients[i] = new if old is None else old + new
            return
        if old is None:
            old = self.gradients[i] = torch.zeros_like(self.parameters[i])
        old[columns] += new


def parameters_of(functions: Sequence[Evaluate]) -> Tensors:
    """Tensors that the functions depend on."""
    return tuple(t for f in functions if isinstance(f, Formula) for t in f.parameters)


def split(
    counts: tuple[int, int], tensors: Sequence[Tensor | None]
) -> tuple[Tensors, Tensors, Sources]:
    """Arguments, parameters, both in these ``counts``, and sources."""
    present = blocks.present(tensors[: sum(counts)])
    return present[: counts[0]], present[counts[0] :], tuple(tensors[sum(counts) :])


def with_parameters(functions: Functions, parameters: Tensors) -> Functions:
    """The same functions of other parameters, their gradients not yet summed."""
    rest = list(parameters)
    found: list[Evaluate] = []
    for f in functions.each:
        if isinstance(f, Formula):
            number = len(f.parameters)
            found.append(Formula(f.function, tuple(rest[:number]), f.own))
            rest = rest[number:]
        else:
            found.append(f)
    return Functions(found, functions.widths, functions.arguments)


def gradients_of(functions: Sequence[Evaluate], rows: int) -> list[Tensor | None]:
    """Gradients of :func:`parameters_of`, after all of ``rows`` were pulled back."""
    formulas = [f for f in functions if isinstance(f, Formula)]
    if not rows:
        return [torch.zeros_like(t) for t in parameters_of(formulas)]
    return [g for f in formulas for g in f.gradients]


Each = tuple[Sequence[bool], Sequence[bool], Sequence[bool]]
"""Of which arguments, parameters and sources gradients are wanted."""


def differentiable(
    plain: Callable[[Functions, Tensors, Tensor], Tensor],
    functions: Functions,
    generate: Callable[[Sources], Tensor],
    scratch: int,
    inputs: tuple[Tensors, Tensors, Sources],
    gy: Tensor,
    wanted: Each,
) -> list[Tensor | None]:
    """Gradients of a layer with a graph, for derivatives of the derivative: in blocks of rows.

    Args:
        plain: functions, arguments and coefficients to outputs, by differentiable operations.
        functions: the basis.
        generate: sources to coefficients, differentiable.
        scratch: bytes.
        inputs: arguments, parameters and sources.
        gy: gradient of the outputs.
        wanted: which gradients.

    Returns:
        Of arguments, parameters and sources, in this order.
    """
    if blocks.is_batched(gy):
        return _at_once(plain, functions, generate, inputs, gy, wanted)
    arguments, parameters, sources = inputs

    def function(rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
        return (plain(with_parameters(functions, shared[:-1]), rows, shared[-1]),), ()

    learned = wanted[2]
    w = generate(sources)
    numbers = sum(a[:1].numel() for a in arguments) * 10 * max(functions.widths)
    step = max(1, scratch // (max(numbers, 1) * w.element_size()))
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


def _at_once(
    plain: Callable[[Functions, Tensors, Tensor], Tensor],
    functions: Functions,
    generate: Callable[[Sources], Tensor],
    inputs: tuple[Tensors, Tensors, Sources],
    gy: Tensor,
    wanted: Each,
) -> list[Tensor | None]:
    """The same of many gradients at once: by autograd alone, which is all that torch can batch."""
    higher, chosen = torch.is_grad_enabled(), [w for side in wanted for w in side]
    leaves = [
        t if t is None or (higher and t.requires_grad) else t.detach().requires_grad_(w)
        for t, w in zip((t for side in inputs for t in side), chosen, strict=True)
    ]
    arguments, parameters, sources = split((len(inputs[0]), len(inputs[1])), leaves)
    with torch.enable_grad():
        y = plain(with_parameters(functions, parameters), arguments, generate(sources))
    targets = [t for t, w in zip(leaves, chosen, strict=True) if w and t is not None]
    options = {"create_graph": higher, "allow_unused": True}
    found = iter(torch.autograd.grad(y, targets, gy, **options) if targets else ())
    return [
        next(found) if w and t is not None else None for t, w in zip(leaves, chosen, strict=True)
    ]
