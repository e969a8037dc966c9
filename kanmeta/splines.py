"""B-splines of any degree on any grid; faster where knots are evenly spaced and the same for all.

====================  ==================================================  ======================
knots                 values of all functions at once                     many functions
====================  ==================================================  ======================
any                   Cox-de Boor recursion                               the order + 1 that are
evenly spaced, cubic  (a^3 - 4 b^3) / 6, a = (2 - |u|)+, b = (1 - |u|)+,  not 0, put in place
                      u = distance to the middle in spacings
====================  ==================================================  ======================
"""

import torch
from torch import Tensor

from kanmeta.functions import Evaluate, Pull, no_pull
from kanmeta.scratch import Scratch

__all__ = ["splines"]

_DENSE = 32  # knots; with more, scattering few values is cheaper than computing all


def splines(grid: Tensor, order: int) -> Evaluate:
    """B-splines of degree ``order`` on the knots of each input, ``grid`` of shape ``(in, T)``."""
    knots = grid.detach().clone().T.contiguous()  # a copy, because grid updates are in place
    spacing = _spacing(knots) if order == 3 else None
    if knots.shape[0] > _DENSE:
        return _Sparse(knots, order, spacing)
    return _Recursion(knots, order) if spacing is None else _Uniform(knots, spacing)


def _spacing(knots: Tensor) -> float | None:
    """Distance of knots, ``(T, in)``, if it is one and the same up to rounding; else None."""
    first, last = knots[0, :1].double(), knots[-1, :1].double()
    even = torch.linspace(0, 1, len(knots), dtype=torch.float64, device=knots.device)
    ideal = first + (last - first) * even[:, None]
    error = float((knots - ideal).abs().max()) if knots.shape[1] else 0.0
    step = float((last - first).item()) / (len(knots) - 1) if knots.shape[1] else 0.0
    rounding = 4 * torch.finfo(knots.dtype).eps * float(ideal.abs().max()) if step > 0 else 0.0
    return step if step > 0 and error <= rounding else None


def _recursion(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """Values ``(rows, functions, inputs)``, differentiable in x."""
    distance = x.unsqueeze(1) - knots
    reached = (distance >= 0).to(x)
    values = reached[:, :-1] - reached[:, 1:]
    for degree, over in enumerate(_inverse_spans(knots, order), start=1):
        share = values * over
        values = distance[:, : -degree - 1] * share[:, :-1]
        values = values - distance[:, degree + 1 :] * share[:, 1:]
    return values


def _inverse_spans(knots: Tensor, order: int) -> list[Tensor]:
    """1 / (t_{j+d} - t_j) for d = 1 to ``order``; 0 where knots coincide."""
    spans = [knots[d:] - knots[:-d] for d in range(1, order + 1)]
    return [torch.where(span > 0, 1 / span, 0) for span in spans]


class _Recursion:
    """B_jd = (x - t_j) c_j + (t_{j+d+1} - x) c_{j+1}, where c_j = B_{j,d-1} / (t_{j+d} - t_j)."""

    def __init__(self, knots: Tensor, order: int) -> None:
        self.knots, self.order = knots, order
        self.inverse = _inverse_spans(knots, order)

    def extra(self, slopes: bool) -> int:
        return 4 * len(self.knots) + 1

    def __call__(
        self, x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        knots, order = self.knots[:, columns], self.order
        if out is None:
            return _recursion(x, knots, order), no_pull
        buffers = scratch or Scratch(x)
        rows, inputs = x.shape
        number = len(knots)
        distance = buffers.take("distance", rows, number, inputs)
        torch.sub(x.unsqueeze(1), knots, out=distance)
        reached = torch.ge(distance, 0, out=buffers.take("reached", rows, number, inputs))
        share = buffers.take("share0", rows, number - 1, inputs)
        values = torch.sub(reached[:, :-1], reached[:, 1:], out=share if order else out)
        for degree, over in enumerate(self.inverse, start=1):
            share = values.mul_(over[:, columns])
            # Two buffers take turns; the last values go where they are wanted.
            shape = rows, number - 1 - degree, inputs
            values = out if degree == order else buffers.take(f"share{degree % 2}", *shape)
            torch.mul(distance[:, : -degree - 1], share[:, :-1], out=values)
            values.addcmul_(distance[:, degree + 1 :], share[:, 1:], value=-1)

        def pull(g: Tensor) -> Tensor:
            if order == 0:
                return torch.zeros_like(x)
            slopes = torch.sub(share[:, :-1], share[:, 1:], out=out)
            return slopes.mul_(g).sum(1).mul_(order)

        return out, pull


class _Uniform:
    """Cubic B-splines on evenly spaced knots that all inputs share."""

    def __init__(self, knots: Tensor, spacing: float) -> None:
        self.knots = knots
        self.centres = knots[2:-2, :1].contiguous()
        self.unit = 6 ** (-1 / 3)  # times a, so that a^3 / 6 is one power
        self.slope = self.unit / spacing
        self.two = knots.new_tensor(2 * self.unit)
        self.one = knots.new_tensor(self.unit)

    def extra(self, slopes: bool) -> int:
        return len(self.centres) + 1

    def __call__(
        self, x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        if out is None:
            return _recursion(x, self.knots[:, columns], 3), no_pull
        b = (scratch or Scratch(x)).take("b", *out.shape)
        distances = x.unsqueeze(1)
        a = torch.sub(distances, self.centres, out=out).abs_()
        torch.sub(self.two, a, alpha=self.slope, out=a).clamp_min_(0)
        torch.sub(a, self.one, out=b).clamp_min_(0).pow_(3)
        a.pow_(3).sub_(b, alpha=4)

        def pull(g: Tensor) -> Tensor:
            # dB/dx = -3 (a^2 - 4 b^2) sign(u) da/d|u|
            side = torch.sub(distances, self.centres, out=out)
            a = torch.abs(side, out=b)
            g.mul_(side.sign_())
            torch.sub(self.two, a, alpha=self.slope, out=a).clamp_min_(0)
            inner = torch.sub(a, self.one, out=out).clamp_min_(0)
            slopes = a.mul_(a).sub_(inner.mul_(inner), alpha=4)
            return slopes.mul_(g).sum(1).mul_(-3 * self.slope)

        return out, pull


class _Sparse:
    """Of many splines, those order + 1 that are not 0 at a point."""

    def __init__(self, knots: Tensor, order: int, spacing: float | None) -> None:
        self.knots, self.order, self.spacing = knots, order, spacing
        self.grid = knots.T.contiguous()
        self.start = float(knots[0, 0]) if spacing is not None else 0.0
        self.steps = torch.arange(order + 1, device=knots.device).view(-1, 1)

    def extra(self, slopes: bool) -> int:
        # Values, slopes, places of 8 bytes, whether they exist, temporaries, a few of each x.
        return 6 * (self.order + 1) + 8

    def __call__(
        self, x: Tensor, columns: slice, out: Tensor | None = None, scratch: Scratch | None = None
    ) -> tuple[Tensor, Pull]:
        last = len(self.knots) - 1
        number = last - self.order
        local = self._local if self.spacing is None or out is None else self._even
        interval, some, slopes = local(x, columns, last)
        place = (interval - self.order).unsqueeze(1) + self.steps
        exists = (place >= 0) & (place < number)
        place = place.clamp_(0, number - 1)
        if out is None:
            empty = x.new_zeros(x.shape[0], number, x.shape[1])
            return empty.scatter_add(1, place, some * exists), no_pull
        out.zero_().scatter_add_(1, place, some.mul_(exists))

        def pull(g: Tensor) -> Tensor:
            return g.gather(1, place).mul_(slopes.mul_(exists)).sum(1)

        return out, pull

    def _local(self, x: Tensor, columns: slice, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Interval of x, values of the functions that are not 0 there, and their slopes."""
        here, order = self.knots[:, columns], self.order
        below = x.detach().T.contiguous()
        interval = torch.searchsorted(self.grid[columns], below, right=True).T.contiguous() - 1
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
        ends = torch.zeros_like(x)
        slopes = torch.stack([ends, *ratios], 1) - torch.stack([*ratios, ends], 1)
        return interval, torch.stack(values, 1), slopes * order

    def _even(self, x: Tensor, columns: slice, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same for cubic splines on evenly spaced knots, in closed form."""
        assert self.spacing is not None
        steps = (x - self.start).div_(self.spacing)
        before = steps.floor()
        f = steps.sub_(before)
        interval = before.nan_to_num_(-1).clamp_(-1, last).long()  # beyond: none exists
        outside = (interval < 0) | (interval >= last)
        e = 1 - f
        values = x.new_empty(x.shape[0], 4, x.shape[1])
        slopes = torch.empty_like(values)
        torch.pow(e, 3, out=values[:, 0])
        torch.pow(f, 3, out=values[:, 3])
        # 4 - 6 f^2 + 3 f^3 and the same from the other side
        for m, side in ((1, f), (2, e)):
            torch.mul(side, 3, out=values[:, m]).sub_(6).mul_(side).mul_(side).add_(4)
        values.div_(6)
        torch.mul(e, e, out=slopes[:, 0]).neg_()
        torch.mul(f, f, out=slopes[:, 3])
        torch.mul(f, 3, out=slopes[:, 1]).sub_(4).mul_(f)
        torch.mul(e, -3, out=slopes[:, 2]).add_(4).mul_(e)
        slopes.mul_(0.5 / self.spacing)
        values.masked_fill_(outside.unsqueeze(1), 0)
        slopes.masked_fill_(outside.unsqueeze(1), 0)
        return interval, values, slopes
