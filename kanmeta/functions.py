"""What a basis function of a layer is, and those with one formula: a function, Gaussians."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kanmeta.scratch import Scratch

__all__ = ["Evaluate", "Functions", "Pull", "elementwise", "gaussians", "no_pull"]

Pull = Callable[[Tensor], Tensor]
"""Gradient of the values, ``(rows, functions, inputs)`` -> gradient of x, ``(rows, inputs)``.

To be called at most once, before the same buffers are used again; it may overwrite the values and
the gradient that it is given.
"""


class Evaluate(Protocol):
    """Functions of a layer's inputs, as they were when it was made."""

    def extra(self, slopes: bool) -> int:
        """Numbers for each row and input that are alive beside values and their gradient.

        Args:
            slopes: whether gradients are pulled back.
        """
        ...

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


@dataclass(frozen=True)
class Functions:
    """The basis of a layer.

    Attributes:
        each: functions of each slot in turn.
        widths: number of functions of each slot.
        arguments: for each slot, which of the layer's arguments it takes.
    """

    each: Sequence[Evaluate]
    widths: Sequence[int]
    arguments: Sequence[int]


class _Elementwise:
    """One function, of every input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.silu = function is F.silu or type(function) is nn.SiLU

    def extra(self, slopes: bool) -> int:
        return 1 if self.silu else 4

    def __call__(
        self, x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        if out is None:
            return self.function(x).unsqueeze(1), no_pull
        if self.silu:
            return self._silu(x, out, scratch or Scratch(x))
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = self.function(leaf)
        out[:, 0] = y.detach()
        return out, lambda g: torch.autograd.grad(y, leaf, g[:, 0])[0]

    def _silu(self, x: Tensor, out: Tensor, scratch: Scratch) -> tuple[Tensor, Pull]:
        # On contiguous numbers exp is vectorised throughout; short rows leave rests.
        share = scratch.take("share", *x.shape).copy_(x).sigmoid_()
        y = torch.mul(x, share, out=out.select(1, 0))

        def pull(g: Tensor) -> Tensor:
            slope = share.addcmul_(y, share, value=-1).add_(y)  # share + y (1 - share)
            return slope.mul_(g.select(1, 0))

        return out, pull


def elementwise(function: Callable[[Tensor], Tensor]) -> Evaluate:
    """One function, ``function``, of every input: the base branch."""
    return _Elementwise(function)


class _Gaussians:
    """exp(-u^2), u the distances in widths."""

    def __init__(self, centres: Tensor, width: float) -> None:
        self.width = width
        self.scaled = (centres.detach() / width)[:, None]

    def extra(self, slopes: bool) -> int:
        return 1 + (len(self.scaled) if slopes else 0)

    def __call__(
        self, x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        if out is None:
            return torch.exp(-((x / self.width).unsqueeze(1) - self.scaled).square()), no_pull
        buffers, steps = scratch or Scratch(x), x.unsqueeze(1)
        torch.sub(self.scaled, steps, alpha=1 / self.width, out=out)
        out.mul_(out).neg_().exp_()

        def pull(g: Tensor) -> Tensor:
            distance = buffers.take("distance", *out.shape)
            torch.sub(self.scaled, steps, alpha=1 / self.width, out=distance)
            return distance.mul_(out).mul_(g).sum(1).mul_(2 / self.width)

        return out, pull


def gaussians(centres: Tensor, width: float) -> Evaluate:
    """exp(-((x - centre) / width)^2) for each of ``centres``, ``(K,)``."""
    return _Gaussians(centres, width)


def no_pull(g: Tensor) -> Tensor:
    """Stand for the pull of values that autograd differentiates."""
    raise NotImplementedError("values that autograd differentiates")
