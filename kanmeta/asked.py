"""What is asked of derivatives by tiles: of which layer and weights, and which gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanmeta.stream import Sources
from kanmeta.sweep import Key, Slot

__all__ = ["Asked", "Described", "Gradients", "Weights", "marked", "wanted_sources"]


@dataclass(frozen=True)
class Described:
    """What is known of a layer.

    Attributes:
        slots: its functions.
        input_major: the prompts are ``(in, out, dim_z)``, not ``(out, in, dim_z)``.
        activation: of the meta-learner.
        generate: sources -> coefficients ``(*edges, dim_w)``, differentiable.
        scratch: bytes.
    """

    slots: Sequence[Slot]
    input_major: bool
    activation: str
    generate: Callable[[Sources], Tensor]
    scratch: int


@dataclass(frozen=True)
class Weights:
    """W: coefficients ``(dim_w, in, out)``, or :func:`marked` sources."""

    tensors: Sources
    given: bool = False


@dataclass
class Gradients:
    """Of B; None where not wanted."""

    arguments: list[Tensor | None]
    factors: dict[Key, Tensor]
    g: Tensor | None
    weights: list[Tensor | None]


@dataclass(frozen=True)
class Asked:
    """Which of them are wanted."""

    arguments: Sequence[bool]
    weights: Sequence[bool]
    factors: Sequence[Key] = ()
    g: bool = False


def marked(sources: Sources) -> Sources:
    """The sources, and an empty tensor that depends on them; see :func:`wanted_sources`."""
    return (*sources, _Mark.apply(*[s for s in sources if s is not None]))


class _Mark(torch.autograd.Function):
    """Nothing, made of the sources: a node that backward passes if it is to reach one of them."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.number = len(tensors)
        return tensors[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[None, ...]:
        return tuple(None for _ in range(ctx.number))


def wanted_sources(sources: Sources, wanted: Sequence[bool]) -> Sequence[bool]:
    """Which of the :func:`marked` sources the backward pass in progress is to reach.

    ``ctx.needs_input_grad`` says which can be reached: that ``torch.autograd.grad(u, x)`` asks
    for x alone, it does not know, and an inner derivative would compute those of all parameters.
    """
    mark = sources[-1]
    node = None if mark is None else mark.grad_fn
    if node is None or torch._C._will_engine_execute_node(node):
        return [*wanted[:-1], False]
    return [False] * len(wanted)
