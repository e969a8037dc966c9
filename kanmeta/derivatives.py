"""Derivatives of any order of the functions that adapters declare: functions and Gaussians.

Everything that derivatives of a layer need is linear in Phi^(r)(x), its derivatives:

* ``mix``: sum_r a_r Phi^(r)(x), which coefficients are multiplied with;
* ``contract``: sum_k Phi_k^(r)(x) p_k, for p = g W^T of what was multiplied with them.

B-splines: :mod:`kanmeta.spline_derivatives`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Derivatives", "Elementwise", "Gaussians", "Planes", "Point", "Weights"]

Weights = Mapping[int, Tensor | None]
"""Order of a derivative -> its factor, ``(rows, inputs)``; None: 1."""


class Planes:
    """Memory for ``(rows, functions, inputs)``, with ``pad`` planes of no function around a row.

    Functions beyond the ends of a grid read and write there, so nobody has to ask which exist.

    Attributes:
        flat: all of it, ``((rows * (pad + functions) + pad) * inputs,)``.
        values: ``(rows, functions, inputs)``.
        matrix: ``(rows, functions * inputs)``.
    """

    def __init__(self, rows: int, functions: int, inputs: int, pad: int, like: Tensor) -> None:
        """Filled with 0."""
        self.row = (pad + functions) * inputs
        self.flat = like.new_zeros(rows * self.row + pad * inputs)
        start = pad * inputs
        self.values = self.flat.as_strided((rows, functions, inputs), (self.row, inputs, 1), start)
        self.matrix = self.flat.as_strided((rows, functions * inputs), (self.row, 1), start)


class Point(Protocol):
    """The functions of a slot where the inputs of a tile are."""

    def mix(self, weights: Weights, out: Planes) -> None:
        """Write sum_r a_r Phi^(r)(x)."""
        ...

    def contract(self, p: Planes, orders: Sequence[int]) -> list[Tensor]:
        """Return sum_k Phi_k^(r)(x) p_k for each r of ``orders``, ``(rows, inputs)``."""
        ...


class Derivatives(Protocol):
    """Derivatives of the functions of a slot.

    Attributes:
        pad: planes around a row that :class:`Planes` are to have.
    """

    pad: int

    def at(self, x: Tensor, columns: slice) -> Point:
        """Look at the inputs ``x``, contiguous ``(rows, inputs)``, which are the ``columns``."""
        ...


class Elementwise(Derivatives):
    """Of one function of every input. SiLU in closed form, others by autograd."""

    pad = 0

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """``function`` treats numbers alike and independently."""
        self.function = function
        self.silu = function is F.silu or type(function) is nn.SiLU

    def at(self, x: Tensor, columns: slice) -> Point:
        """See :class:`Derivatives`."""
        if self.silu:
            return _Silu(x)
        return _All(lambda order: _by_autograd(self.function, x, order).unsqueeze(1))


class Gaussians(Derivatives):
    """Of exp(-t^2), t = (x - centre) / width, for each of ``centres``, ``(K,)``."""

    pad = 0

    def __init__(self, centres: Tensor, width: float) -> None:
        """See the class."""
        self.scaled, self.width = (centres.detach() / width)[:, None], width

    def at(self, x: Tensor, columns: slice) -> Point:
        """See :class:`Derivatives`."""
        t = (x / self.width).unsqueeze(1) - self.scaled
        orders = [torch.exp(-t.square())]

        def derivative(order: int) -> Tensor:
            # E^(r+1) = -2 (t E^(r) + r E^(r-1)), in units of the width
            while len(orders) <= order:
                r = len(orders) - 1
                following = t * orders[r]
                if r:
                    following.add_(orders[r - 1], alpha=r)
                orders.append(following.mul_(-2))
            return orders[order] if order == 0 else orders[order] * self.width**-order

        return _All(derivative)


class _All(Point):
    """All functions, evaluated: derivative of an order -> ``(rows, functions, inputs)``."""

    def __init__(self, derivative: Callable[[int], Tensor]) -> None:
        self.derivative = derivative

    def mix(self, weights: Weights, out: Planes) -> None:
        for i, (order, weight) in enumerate(weights.items()):
            values = self.derivative(order)
            if i == 0:
                factor = 1 if weight is None else weight.unsqueeze(1)
                torch.mul(values, factor, out=out.values)
            elif weight is None:
                out.values.add_(values)
            else:
                out.values.addcmul_(values, weight.unsqueeze(1))

    def contract(self, p: Planes, orders: Sequence[int]) -> list[Tensor]:
        if p.values.shape[1] == 1:
            return [(self.derivative(order) * p.values)[:, 0] for order in orders]
        return [(self.derivative(order) * p.values).sum(1) for order in orders]


class _Silu(_All):
    """x s, s the logistic function; its derivatives are x s^(r) + r s^(r-1)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(self._derivative)
        self.x = x
        self.logistic = [torch.sigmoid(x)]

    def _derivative(self, order: int) -> Tensor:
        s = self.logistic
        while len(s) <= order:  # those of s' = s - s^2
            r = len(s) - 1
            following = s[r].clone()
            for q in range(r // 2 + 1):
                twice = 2 if 2 * q < r else 1
                following.addcmul_(s[q], s[r - q], value=-twice * math.comb(r, q))
            s.append(following)
        y = self.x * s[order]
        return (y.add_(s[order - 1], alpha=order) if order else y).unsqueeze(1)


def _by_autograd(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        for _ in range(order):
            if not y.requires_grad:
                return torch.zeros_like(x)
            (found,) = torch.autograd.grad(y.sum(), leaf, create_graph=True, allow_unused=True)
            if found is None:
                return torch.zeros_like(x)
            y = found
    return y.detach()
