"""Derivatives of any order of B-splines; see :mod:`kanmeta.derivatives`.

They never exist as (rows, functions, inputs) here. On an interval of the grid only the order + 1
functions m that are not 0 count, and each is a polynomial of the place f in it, so ``contract``
reads order + 1 numbers p_m and has all derivatives from these, as polynomials of f.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from kanmeta.derivatives import Derivatives, Planes, Point, Weights
from kanmeta.splines import spacing_of

__all__ = ["Splines"]


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
