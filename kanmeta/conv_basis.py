"""Basis functions of convolutions: what an adapter says which of them a layer computes.

All channels have the same functions, whose values are convolved with the coefficients. What a layer
does before (a norm, dropout) and after (a norm, an activation) stays the library's own modules, run
on all images at once. That a layer does compute what its adapter says is checked on the layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from kanmeta.functions import Evaluate

__all__ = ["ConvBranch", "Convolution"]


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
