"""What a basis function of a layer is, and those with one formula: a function, Gaussians."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kanmeta.scratch import Scratch

__all__ = ["Evaluate", "Pull", "elementwise", "gaussians", "no_pull"]

Pull = Callable[[Tensor], Tensor]
"""Gradient of the values, ``(rows, functions, inputs)`` -> gradient of x, ``(rows, inputs)``.

To be called at most once, before the same buffers are used again; it may overwrite the values.
"""


class Evaluate(Protocol):
    """Functions of a layer's inputs, as they were when it was made."""

    def __call__(
        self, x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        """Evaluate the functions of the inputs ``columns``.

        Args:
            x: ``(rows, inputs)``, of these inputs only.
            columns: which of the layer's inputs these are.
            out: where to write the values; None: return a new tensor that is differentiable in x.
            scratch: buffers for intermediate results; None: allocate them.

        Returns:
            Values ``(rows, functions, inputs)``, and what pulls gradients back.
        """
        ...


def elementwise(function: Callable[[Tensor], Tensor]) -> Evaluate:
    """One function, ``function``, of every input: the base branch."""
    silu = function is F.silu or type(function) is nn.SiLU

    def evaluate(
        x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        if out is None:
            return function(x).unsqueeze(1), no_pull
        if silu:
            torch.ops.aten.silu.out(x, out=out[:, 0])
            return out, lambda g: torch.ops.aten.silu_backward(g[:, 0], x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = function(leaf)
        out[:, 0] = y.detach()
        return out, lambda g: torch.autograd.grad(y, leaf, g[:, 0])[0]

    return evaluate


def gaussians(centres: Tensor, width: float) -> Evaluate:
    """exp(-((x - centre) / width)^2) for each of ``centres``, ``(K,)``."""
    scaled = (centres.detach() / width)[:, None]

    def evaluate(
        x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        if out is None:
            return torch.exp(-((x / width).unsqueeze(1) - scaled).square()), no_pull
        buffers = scratch or Scratch(x)
        steps = torch.div(x, width, out=buffers.take("steps", *x.shape)).unsqueeze(1)
        torch.sub(steps, scaled, out=out)
        out.mul_(out).neg_().exp_()

        def pull(g: Tensor) -> Tensor:
            distance = torch.sub(steps, scaled, out=buffers.take("distance", *out.shape))
            return distance.mul_(out).mul_(g).sum(1).mul_(-2 / width)

        return out, pull

    return evaluate


def no_pull(g: Tensor) -> Tensor:
    """Stand for the pull of values that autograd differentiates."""
    raise NotImplementedError("values that autograd differentiates")
