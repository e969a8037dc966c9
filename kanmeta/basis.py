"""Basis functions of linear KAN layers on blocks of rows and inputs, and their slopes.

Values have the shape ``(rows, functions, inputs)``: inputs run fastest, so operations work on long
contiguous rows, and the last two dimensions flatten to what a matrix product needs. An adapter says
which of these a layer computes; that it does is checked on the layer itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Basis", "Branch", "Evaluate", "Pull", "elementwise", "gaussians", "splines"]

Pull = Callable[[Tensor], Tensor]
"""Gradient of the values, ``(rows, functions, inputs)`` -> gradient of x, ``(rows, inputs)``."""


class Evaluate(Protocol):
    """Functions of a layer's inputs, as they were when it was made."""

    def __call__(self, x: Tensor, columns: slice, out: Tensor | None = None) -> tuple[Tensor, Pull]:
        """Evaluate the functions of the inputs ``columns``.

        Args:
            x: ``(rows, inputs)``, of these inputs only.
            columns: which of the layer's inputs these are.
            out: where to write the values; None: return a new tensor that is differentiable in x.

        Returns:
            Values ``(rows, functions, inputs)``, and what pulls gradients back.
        """
        ...


def _unchanged(layer: nn.Module, x: Tensor) -> Tensor:
    return x


def _nothing_added(layer: nn.Module, y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True)
class Branch:
    """What the coefficients of one slot are multiplied with.

    Attributes:
        functions: ``layer -> Evaluate``; None if the layer, with its options, computes others.
        argument: ``(layer, x (rows, in)) -> (rows, in)``: a norm before the functions.
    """

    functions: Callable[[nn.Module], Evaluate | None]
    argument: Callable[[nn.Module, Tensor], Tensor] = _unchanged


@dataclass(frozen=True)
class Basis:
    """A linear layer y_o = sum_i sum_k w[o,i,k] B_k(x_i), k running over all slots.

    Attributes:
        branches: path of each slot -> its functions.
        finish: ``(layer, y (rows, out)) -> y``: a bias.
    """

    branches: Mapping[str, Branch]
    finish: Callable[[nn.Module, Tensor], Tensor] = _nothing_added


def elementwise(function: Callable[[Tensor], Tensor]) -> Evaluate:
    """One function, ``function``, of every input: the base branch."""
    silu = function is F.silu or type(function) is nn.SiLU

    def evaluate(x: Tensor, columns: slice, out: Tensor | None = None) -> tuple[Tensor, Pull]:
        if out is None:
            return function(x).unsqueeze(1), _no_pull
        if silu:
            out[:, 0] = F.silu(x)
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

    def evaluate(x: Tensor, columns: slice, out: Tensor | None = None) -> tuple[Tensor, Pull]:
        distance = (x / width).unsqueeze(1) - scaled
        if out is None:
            return torch.exp(-distance.square()), _no_pull
        torch.mul(distance, distance, out=out)
        out.neg_().exp_()
        return out, lambda g: distance.mul_(out).mul_(g).sum(1).mul_(-2 / width)

    return evaluate


def splines(grid: Tensor, order: int) -> Evaluate:
    """B-splines of degree ``order`` on the knots of each input, ``grid`` of shape ``(in, T)``.

    With many of them, only the order + 1 that are not 0 at a point are computed.
    """
    knots = grid.detach().clone().T.contiguous()  # a copy, because grid updates are in place
    return (_sparse_splines if knots.shape[0] > _DENSE else _dense_splines)(knots, order)


_DENSE = 32  # knots; with more, scattering few values is cheaper than computing all


def _dense_splines(knots: Tensor, order: int) -> Evaluate:
    spans = [knots[d:] - knots[:-d] for d in range(1, order + 1)]
    inverse = [torch.where(span > 0, 1 / span, 0) for span in spans]

    def evaluate(x: Tensor, columns: slice, out: Tensor | None = None) -> tuple[Tensor, Pull]:
        # B_jd = (x - t_j) c_j + (t_{j+d+1} - x) c_{j+1}, where c_j = B_{j,d-1} / (t_{j+d} - t_j)
        distance = x.unsqueeze(1) - knots[:, columns]
        reached = (distance >= 0).to(x)
        values = share = reached[:, :-1] - reached[:, 1:]
        del reached
        for degree in range(1, order + 1):
            over = inverse[degree - 1][:, columns]
            share = values * over if out is None else values.mul_(over)
            near, far = distance[:, : -degree - 1], distance[:, degree + 1 :]
            if out is None:
                values = near * share[:, :-1] - far * share[:, 1:]
            else:
                result = out if degree == order else torch.empty_like(near)
                values = torch.mul(near, share[:, :-1], out=result)
                values.addcmul_(far, share[:, 1:], value=-1)
        if out is not None and order == 0:
            out.copy_(values)

        def pull(g: Tensor) -> Tensor:
            if order == 0:
                return torch.zeros_like(x)
            return (share[:, :-1] - share[:, 1:]).mul_(g).sum(1).mul_(order)

        return (values if out is None else out), pull if out is not None else _no_pull

    return evaluate


def _sparse_splines(knots: Tensor, order: int) -> Evaluate:
    grid, last = knots.T.contiguous(), knots.shape[0] - 1
    number = last - order

    def evaluate(x: Tensor, columns: slice, out: Tensor | None = None) -> tuple[Tensor, Pull]:
        here = knots[:, columns]
        below = x.detach().T.contiguous()
        interval = torch.searchsorted(grid[columns], below, right=True).T.contiguous() - 1
        inside = (interval >= 0) & (interval < last)
        steps = range(1, order + 1)
        left = [x - here.gather(0, (interval + 1 - d).clamp_(0, last)) for d in steps]
        right = [here.gather(0, (interval + d).clamp_(0, last)) - x for d in steps]
        values, ratios = [inside.to(x)], list[Tensor]()
        for degree in steps:  # the recursion, without the terms that are 0
            ratios = [
                value / torch.where(inside, right[r] + left[degree - 1 - r], 1)
                for r, value in enumerate(values)
            ]
            rising = [left[degree - 1 - r] * ratio for r, ratio in enumerate(ratios)]
            falling = [right[r] * ratio for r, ratio in enumerate(ratios)]
            middle = [a + b for a, b in zip(rising, falling[1:], strict=False)]
            values = [falling[0], *middle, rising[-1]] if ratios else values
        number_of = torch.arange(order + 1, device=x.device).view(-1, 1)
        place = (interval - order).unsqueeze(1) + number_of
        exists = (place >= 0) & (place < number)
        place = place.clamp_(0, number - 1)
        some = torch.stack(values, 1) * exists
        if out is None:
            empty = x.new_zeros(x.shape[0], number, x.shape[1])
            return empty.scatter_add(1, place, some), _no_pull
        out.zero_().scatter_add_(1, place, some)

        def pull(g: Tensor) -> Tensor:
            ends = torch.zeros_like(x)
            slopes = torch.stack([ends, *ratios], 1) - torch.stack([*ratios, ends], 1)
            return (g.gather(1, place) * slopes).mul_(exists).sum(1).mul_(order)

        return out, pull

    return evaluate


def _no_pull(g: Tensor) -> Tensor:
    raise NotImplementedError("values that autograd differentiates")
