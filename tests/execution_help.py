"""What tests of execution share: modes, derivatives, and when two are the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta.surgery import bindings

SMALL = 1  # bytes of scratch: one row, one input, one output at a time


def streams(model: nn.Module) -> bool:
    return all(b.spec.rows != "never" for _, b in bindings(model))


def modes(model: nn.Module) -> list[tuple[str, int | None]]:
    """(execution, budget) that the model claims, apart from materialize."""
    claimed: list[tuple[str, int | None]] = [("regenerate", SMALL)]
    if streams(model):
        claimed += [("stream", SMALL), ("stream", 3000)]
    return claimed


def trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def derivatives(run: Callable[[Tensor], Tensor], x: Tensor, model: nn.Module) -> list[Any]:
    """Outputs, and gradients of the input and of all Parameters."""
    leaf = x.detach().requires_grad_() if x.is_leaf else x
    y = run(leaf)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    targets = [leaf, *trained(model)]
    return [y.detach(), *torch.autograd.grad(y, targets, weights, allow_unused=True)]


def assert_same(found: list[Any], expected: list[Any], tolerance: float = 1e-10) -> None:
    """Equal to ``tolerance`` relative to the largest gradient, and values to their own size."""
    largest = max((float(t.norm()) for t in expected[1:] if t is not None), default=0.0)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.shape == theirs.shape
            # A gradient that cancels to 0 behind a norm has no relative error of its own.
            bound = tolerance * max(float(theirs.norm()), largest)
            assert float((ours - theirs).norm()) <= bound
