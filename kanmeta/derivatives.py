"""Derivatives of any order of the functions that adapters declare: functions, Gaussians, B-splines.

Everything that derivatives of a layer need is linear in Phi^(r)(x), its derivatives:

* ``mix``: sum_r a_r Phi^(r)(x), which coefficients are multiplied with;
* ``contract``: sum_k Phi_k^(r)(x) p_k, for p = g W^T of what was multiplied with them.

B-splines never exist as (rows, functions, inputs) here. On an interval of the grid only the
order + 1 functions m that are not 0 count, and each is a polynomial of the place f in it, so
``contract`` reads order + 1 numbers p_m and has all derivatives from these, as polynomials of f.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kanmeta.splines import spacing_of

__all__ = ["Derivatives", "Elementwise", "Gaussians", "Planes", "Point", "Splines"]

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


class Splines(Derivatives):
    """Of B-splines of degree ``order`` on ``knots``, ``(T, in)``, ascending.

    At a knot they are those of the piece to its right, up to rounding.
    """

    def __init__(self, knots: Tensor, order: int) -> None:
        """See the class."""
        self.knots, self.order = knots, order
        self.pad = order + 1
        self._polynomials: dict[tuple[int, ...], tuple[Tensor, list[int]]] = {}

    @cached_property
    def spacing(self) -> float | None:
        """Of the knots if they are evenly spaced and the same for all inputs."""
        return spacing_of(self.knots)

    def polynomials(self, orders: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Derivatives of the functions of an even grid as polynomials of f.

        Returns:
            Their factors, a row a power of each order in turn and a column a function m, and
            numbers of powers.
        """
        key = tuple(orders)
        if key not in self._polynomials:
            rows = [_derivative(self.order, r, self.spacing or 1.0) for r in orders]
            matrix = self.knots.new_tensor([row for each in rows for row in each])
            self._polynomials[key] = matrix.view(-1, self.order + 1), [len(r) for r in rows]
        return self._polynomials[key]

    def at(self, x: Tensor, columns: slice) -> Point:
        """See :class:`Derivatives`."""
        number = len(self.knots) - 1 - self.order
        if self.spacing is not None and self.knots.shape[1]:
            steps = (x - self.knots[0, 0]).div_(self.spacing)
            interval = steps.floor()
            place = steps.sub_(interval)
            interval = interval.nan_to_num_(-1).clamp_(-1, len(self.knots) - 1).long()
            return _Even(self, interval, place, number)
        knots = self.knots[:, columns]
        below = x.T.contiguous()
        interval = torch.searchsorted(knots.T.contiguous(), below, right=True).T.contiguous() - 1
        return _Uneven(self, interval, x, knots, number)


class _Local(Point):
    """The order + 1 functions that are not 0 on an interval, beside those beyond it."""

    def __init__(self, of: Splines, interval: Tensor, number: int) -> None:
        self.of = of
        self.shape = rows, inputs = interval.shape
        self.inputs = inputs
        row = (of.pad + number) * inputs
        starts = torch.arange(0, rows * row, row, device=interval.device)[:, None]
        # Function 0 of an interval is the interval - order, so the first pad + this.
        first = starts + torch.arange(inputs, inputs * 2, device=interval.device)
        self.index = first.add_(interval, alpha=inputs).view(-1)

    def _views(self, planes: Planes) -> list[Tensor]:
        """Functions m = 0, 1, ... of an interval, to be indexed by where it begins."""
        last = self.of.order * self.inputs
        size = len(planes.flat) - last
        return [planes.flat.narrow(0, m, size) for m in range(0, last + 1, self.inputs)]

    def _scatter(self, parts: Sequence[Tensor], out: Planes) -> None:
        out.flat.zero_()
        for view, part in zip(self._views(out), parts, strict=True):
            view.scatter_(0, self.index, part.view(-1))

    def _gather(self, p: Planes) -> Tensor:
        """``(order + 1, rows * inputs)``."""
        found = p.flat.new_empty(self.of.order + 1, len(self.index))
        for view, part in zip(self._views(p), found, strict=True):
            torch.index_select(view, 0, self.index, out=part)
        return found


class _Even(_Local):
    """By polynomials of f that all intervals have in common."""

    def __init__(self, of: Splines, interval: Tensor, place: Tensor, number: int) -> None:
        super().__init__(of, interval, number)
        self.place = place

    def mix(self, weights: Weights, out: Planes) -> None:
        weights = {r: a for r, a in weights.items() if r <= self.of.order}
        matrix, numbers = self.of.polynomials([*weights])
        powers = self.place.new_empty(len(matrix), *self.shape)
        free = iter(powers)
        for number, weight in zip(numbers, weights.values(), strict=True):
            power = next(free)
            power.fill_(1) if weight is None else power.copy_(weight)
            for _ in range(1, number):
                power = torch.mul(power, self.place, out=next(free))
        self._scatter((matrix.T @ powers.view(len(matrix), len(self.index))).unbind(), out)

    def contract(self, p: Planes, orders: Sequence[int]) -> list[Tensor]:
        matrix, numbers = self.of.polynomials([r for r in orders if r <= self.of.order])
        terms = [*(matrix @ self._gather(p)).view(len(matrix), *self.shape).unbind()]
        results = []
        for number in numbers:
            *lower, y = terms[:number]
            del terms[:number]
            while lower:
                y = torch.addcmul(lower.pop(), y, self.place)
            results.append(y)
        found = iter(results)
        return [next(found) if r <= self.of.order else torch.zeros_like(self.place) for r in orders]


def _derivative(order: int, derivative: int, spacing: float) -> list[list[float]]:
    """``[q][m]``: factor of f^q in a derivative of function m."""
    functions = _even_polynomials(order)
    return [
        [
            p[q + derivative] * math.perm(q + derivative, derivative) / spacing**derivative
            for p in functions
        ]
        for q in range(order + 1 - derivative)
    ]


def _even_polynomials(order: int) -> list[list[float]]:
    """``[m][q]``: B(f + order - m) as a polynomial of f in [0, 1), B on knots 0, 1, 2, ...

    From B(u) = sum_j (-1)^j C(order + 1, j) max(u - j, 0)^order / order!
    """
    return [
        [
            math.comb(order, q)
            * sum(
                (-1) ** j * math.comb(order + 1, j) * (order - m - j) ** (order - q)
                for j in range(order - m + 1)
            )
            / math.factorial(order)
            for q in range(order + 1)
        ]
        for m in range(order + 1)
    ]


class _Uneven(_Local):
    """By Cox-de Boor's recursion, without the terms that are 0."""

    def __init__(
        self, of: Splines, interval: Tensor, x: Tensor, knots: Tensor, number: int
    ) -> None:
        super().__init__(of, interval, number)
        order, last = of.order, len(knots) - 1
        self.x = x
        self.inside = (interval >= 0) & (interval < last)
        steps = range(1, order + 1)
        self.left = [x - knots.gather(0, (interval + 1 - d).clamp_(0, last)) for d in steps]
        self.right = [knots.gather(0, (interval + d).clamp_(0, last)) - x for d in steps]

    def _ratios(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Values over the distance of the knots that they stretch over."""
        spans = [a + b for a, b in zip(self.right, self.left[len(values) - 1 :: -1], strict=False)]
        return [
            value / torch.where(self.inside & (span > 0), span, 1)
            for value, span in zip(values, spans, strict=False)
        ]

    def _functions(self, derivative: int) -> list[Tensor]:
        """Functions m = 0 to order."""
        order = self.of.order
        values = [self.inside.to(self.x)]
        if derivative > order:
            return [torch.zeros_like(values[0])] * (order + 1)
        for degree in range(1, order + 1):
            ratios = self._ratios(values)
            zero = torch.zeros_like(values[0])
            if degree > order - derivative:  # slopes, from values of one degree less
                values = [
                    (a - b) * degree for a, b in zip([zero, *ratios], [*ratios, zero], strict=True)
                ]
                continue
            rising = [self.left[degree - 1 - m] * ratio for m, ratio in enumerate(ratios)]
            falling = [self.right[m] * ratio for m, ratio in enumerate(ratios)]
            values = [a + b for a, b in zip([zero, *rising], [*falling, zero], strict=True)]
        return values

    def mix(self, weights: Weights, out: Planes) -> None:
        parts: list[Tensor] = []
        for order, weight in weights.items():
            values = self._functions(order)
            scaled = values if weight is None else [v * weight for v in values]
            parts = [a + b for a, b in zip(parts, scaled, strict=True)] if parts else scaled
        self._scatter([p.contiguous() for p in parts], out)

    def contract(self, p: Planes, orders: Sequence[int]) -> list[Tensor]:
        terms = self._gather(p).view(-1, *self.shape)
        return [torch.stack(self._functions(order)).mul_(terms).sum(0) for order in orders]
