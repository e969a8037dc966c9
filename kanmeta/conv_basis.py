"""Basis functions of convolutions: what an adapter says which of them a layer computes.

All channels have the same functions, whose values are convolved with the coefficients. What a layer
does before (a norm, dropout) and after (a norm, an activation) stays the library's own modules, run
on all images at once. That a layer does compute what its adapter says is checked on the layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanmeta.blocks import Tensors
from kanmeta.functions import Evaluate, Pull, no_pull
from kanmeta.scratch import Scratch

__all__ = ["ConvBranch", "Convolution", "Formula", "parameters_of", "with_parameters"]


def _unchanged(layer: nn.Module, group: int, x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class ConvBranch:
    """What the coefficients of one slot are multiplied with.

    Attributes:
        functions: ``layer -> Evaluate`` of one channel's pixels; None if the layer, with its
            options, computes others.
        argument: ``(layer, group, x (N, in / groups, *space))`` to the same shape: what happens
            before the functions. Branches that share one share its result.
    """

    functions: Callable[[nn.Module], Evaluate | None]
    argument: Callable[[nn.Module, int, Tensor], Tensor] = _unchanged


@dataclass(frozen=True)
class Convolution:
    """A layer y_o = finish(sum_i sum_k w[o,i,k] * B_k(x_i)), * a convolution, for each group.

    Attributes:
        branches: path of each slot -> its functions.
        like: path of a torch convolution that has the layer's stride, padding and dilation.
        finish: ``(layer, group, y (N, out / groups, *space))`` to the group's outputs: a norm, an
            activation; None: nothing follows.
    """

    branches: Mapping[str, ConvBranch]
    like: str
    finish: Callable[[nn.Module, int, Tensor], Tensor] | None = None


class Formula:
    """Functions by a formula that autograd differentiates, within one tile.

    Args:
        function: ``(x (rows, inputs), *parameters)`` to ``(rows, functions, inputs)``.
        parameters: tensors, maybe trained, that the functions depend on.

    Attributes:
        gradients: of the parameters, added up over all tiles that were pulled back.
    """

    def __init__(self, function: Callable[..., Tensor], parameters: Tensors = ()) -> None:
        """See the class."""
        self.function, self.parameters = function, parameters
        self.gradients: list[Tensor | None] = [None] * len(parameters)

    def extra(self, slopes: bool) -> int:
        """See :class:`Evaluate`: a guess."""
        return 40

    def __call__(
        self, x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        """See :class:`Evaluate`."""
        if out is None:
            return self.function(x, *self.parameters), no_pull
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (x, *self.parameters)]
            values = self.function(*leaves)
        out.copy_(values.detach())

        def pull(g: Tensor) -> Tensor:
            gx, *found = torch.autograd.grad(values, leaves, g, allow_unused=True)
            for i, new in enumerate(found):
                old = self.gradients[i]
                self.gradients[i] = old if new is None else new if old is None else old + new
            return torch.zeros_like(x) if gx is None else gx

        return out, pull


def parameters_of(functions: Sequence[Evaluate]) -> Tensors:
    """Tensors that the functions depend on."""
    return tuple(t for f in functions if isinstance(f, Formula) for t in f.parameters)


def with_parameters(functions: Sequence[Evaluate], parameters: Tensors) -> list[Evaluate]:
    """The same functions of other parameters, their gradients not yet summed."""
    rest = list(parameters)
    found: list[Evaluate] = []
    for f in functions:
        if isinstance(f, Formula):
            number = len(f.parameters)
            found.append(Formula(f.function, tuple(rest[:number])))
            rest = rest[number:]
        else:
            found.append(f)
    return found
