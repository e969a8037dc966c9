"""Derivatives of the sum that a layer computes, tile by tile, without autograd.

Everything is a part of one form, linear in a, g and W each:

    B = sum_jr sum_n sum_i sum_k sum_o  a_jr[n,i]  Phi_k^(r)(x_j[n,i])  W[k,i,o]  g[n,o]

over arguments j and orders r of derivatives. Its gradients are ``value`` (of g), ``slopes`` (of
a_jr) and that of W; the gradient of x_j is sum_r a_jr * slopes_j,r+1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanmeta.blocks import Tensors, slices
from kanmeta.derivatives import Derivatives, Planes, Point
from kanmeta.edges import Edges

__all__ = ["Form", "Key", "Slot", "Wanted", "sweep"]

Key = tuple[int, int]
"""Argument, order of the derivative."""


@dataclass(frozen=True)
class Slot:
    """Functions of one argument.

    Attributes:
        derivatives: of the functions.
        width: how many they are.
        argument: which.
    """

    derivatives: Derivatives
    width: int
    argument: int


@dataclass(frozen=True)
class Form:
    """All of B but W.

    Attributes:
        arguments: x_j, ``(N, in)`` each.
        factors: a_jr, ``(N, in)`` each; None: 1.
        g: ``(N, out)``; None if it is not needed.
    """

    arguments: Tensors
    factors: Mapping[Key, Tensor | None]
    g: Tensor | None


@dataclass(frozen=True)
class Wanted:
    """Which gradients of B to compute."""

    value: bool = False
    slopes: Sequence[Key] = ()
    edges: bool = False


def sweep(
    slots: Sequence[Slot], form: Form, edges: Edges, wanted: Wanted, numbers: int
) -> tuple[Tensor | None, dict[Key, Tensor]]:
    """Compute gradients of B; that of W is left with ``edges``.

    Args:
        slots: functions of the layer.
        form: B.
        edges: W.
        wanted: which.
        numbers: that tiles may take.

    Returns:
        Gradient of g, ``(N, out)``, and of each wanted a_jr, ``(N, in)``.
    """
    return _Sweep(slots, form, edges, wanted).run(numbers)


class _Sweep:
    """See :func:`sweep`."""

    def __init__(self, slots: Sequence[Slot], form: Form, edges: Edges, wanted: Wanted) -> None:
        self.slots, self.form, self.edges, self.wanted = slots, form, edges, wanted
        self.g = None if form.g is None else form.g.contiguous()
        first = form.arguments[0]
        self.number, self.inputs = first.shape
        self.value = first.new_zeros(self.number, edges.outputs) if wanted.value else None
        self.slopes = {key: first.new_zeros(self.number, self.inputs) for key in wanted.slopes}
        self._planes: dict[tuple[str, int], tuple[tuple[int, int], Planes]] = {}

    def run(self, numbers: int) -> tuple[Tensor | None, dict[Key, Tensor]]:
        step_columns, step_rows = self._sizes(numbers)
        for columns in slices(self.inputs, step_columns):
            used = self.wanted.value or self.wanted.slopes
            w = self._of_slots(self.edges.tile(columns)) if used else ()
            gw: Tensors = ()
            if self.wanted.edges:
                size = self.edges.width, (columns.stop - columns.start) * self.edges.outputs
                whole = self.form.arguments[0].new_zeros(size)
                gw = self._of_slots(whole)
            for rows in slices(self.number, step_rows):
                self._tile(rows, columns, w, gw)
            if self.wanted.edges:
                self.edges.pull(columns, whole)
        return self.value, self.slopes

    def _sizes(self, numbers: int) -> tuple[int, int]:
        """Inputs and rows of a tile."""
        kinds = int(self.wanted.value or self.wanted.edges) + bool(self.wanted.slopes)
        an_edge = self.edges.width * (1 + self.wanted.edges) + 4
        a_value = sum(s.width + s.derivatives.pad for s in self.slots) * kinds + _LOCAL
        best, least = (1, 1), float("inf")
        columns = max(self.inputs, 1)
        while True:
            room = numbers - columns * self.edges.outputs * an_edge
            rows = min(
                max(room // (columns * a_value), 1), max(self.number, 1), _MOST // columns + 1
            )
            parts = -(-max(self.number, 1) // rows)
            tiles = parts * -(-self.inputs // columns)
            if tiles < least:
                best, least = (columns, -(-max(self.number, 1) // parts)), tiles
            if columns == 1:
                return best
            columns = -(-columns // 2)

    def _of_slots(self, w: Tensor) -> Tensors:
        """Rows of each slot, ``(functions * inputs, outputs)``."""
        parts = torch.split(w, [slot.width for slot in self.slots])
        return tuple(part.view(-1, self.edges.outputs) for part in parts)

    def _tile(self, rows: slice, columns: slice, w: Tensors, gw: Tensors) -> None:
        xs = [x[rows, columns].contiguous() for x in self.form.arguments]
        for s, slot in enumerate(self.slots):
            point = slot.derivatives.at(xs[slot.argument], columns)
            if self.wanted.value or self.wanted.edges:
                self._mix(s, point, rows, columns, w, gw)
            self._contract(s, point, rows, columns, w)

    def _mix(
        self, s: int, point: Point, rows: slice, columns: slice, w: Tensors, gw: Tensors
    ) -> None:
        weights = {
            order: None if a is None else a[rows, columns].contiguous()
            for (j, order), a in self.form.factors.items()
            if j == self.slots[s].argument
        }
        if not weights:
            return
        out = self._room("mixed", s, rows, columns)
        point.mix(weights, out)
        if self.value is not None:
            self.value[rows].addmm_(out.matrix, w[s])
        if gw:
            assert self.g is not None
            gw[s].addmm_(out.matrix.T, self.g[rows])

    def _contract(self, s: int, point: Point, rows: slice, columns: slice, w: Tensors) -> None:
        orders = [order for j, order in self.slopes if j == self.slots[s].argument]
        if not orders:
            return
        assert self.g is not None
        p = self._room("p", s, rows, columns)
        torch.mm(self.g[rows], w[s].T, out=p.matrix)
        for order, part in zip(orders, point.contract(p, orders), strict=True):
            self.slopes[self.slots[s].argument, order][rows, columns].add_(part)

    def _room(self, kind: str, s: int, rows: slice, columns: slice) -> Planes:
        """Buffers of a slot, used again for tiles of the same size."""
        size = rows.stop - rows.start, columns.stop - columns.start
        found = self._planes.get((kind, s))
        if found is None or found[0] != size:
            slot = self.slots[s]
            self._planes.pop((kind, s), None)
            planes = Planes(
                size[0], slot.width, size[1], slot.derivatives.pad, self.form.arguments[0]
            )
            found = self._planes[kind, s] = size, planes
        return found[1]


_LOCAL = 24  # numbers a row and input that evaluating derivatives takes
_MOST = 1 << 14  # rows times inputs of a tile: what stays in a core's cache
