"""The basis of a layer in tiles of rows and inputs: values, what they are projected to, gradients.

Values are ``(rows, functions, inputs)``, see :mod:`kanmeta.functions`. Where they are projected,
functions are outermost, so that the projection is one matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kanmeta.blocks import Tensors
from kanmeta.formulas import parameters_of
from kanmeta.functions import Functions, Pull
from kanmeta.scratch import Scratch
from kanmeta.tiles import Way
from kanmeta.tiling import parts

__all__ = ["Here", "Values", "add_product"]


@dataclass
class Here:
    """The basis at one tile of rows and inputs.

    Attributes:
        r, c: which tile.
        factors: what coefficients are multiplied with, ``(rows, functions * inputs)`` each.
        gradients: of the factors, buffers; empty where none are wanted.
        fresh: whether the gradients have not been written to.
        values: functions outermost, if they are projected.
        gradient: what ``gradients`` are parts of.
        pulls: what pulls gradients back, a slot each.
    """

    r: int
    c: int
    factors: list[Tensor]
    values: Tensor
    pulls: list[Pull]
    gradients: list[Tensor] = field(default_factory=list)
    gradient: Tensor | None = None
    fresh: bool = True

    def add(self, g: Tensor, matrices: Sequence[Tensor]) -> None:
        """Add what gradients ``(rows, outs)`` of the outputs give through ``matrices``."""
        for target, matrix in zip(self.gradients, matrices, strict=False):
            add_product(target, g, matrix.T, self.fresh)
        self.fresh = False


class Values:
    """Evaluates the basis.

    Args:
        functions: the basis.
        arguments: each ``(N, in)``.
        rows, columns: size of a tile.
        way: how the basis is projected.
        scratch: buffers.
        slopes: whether gradients are wanted, of arguments or of the projection.
    """

    def __init__(
        self,
        functions: Functions,
        arguments: Tensors,
        rows: int,
        columns: int,
        way: Way,
        scratch: Scratch,
        slopes: bool,
    ) -> None:
        """Cut the arguments; nothing is evaluated."""
        self.functions, self.scratch, self.slopes = functions, scratch, slopes
        self.learned = [bool(parameters_of([f])) for f in functions.each]
        self.known = sum(functions.widths)
        self.project, self.shift = _projection(way), way.shift is not None
        self.rows, self.columns = rows, columns
        self.parts = [[parts(row, columns, 1) for row in parts(a, rows, 0)] for a in arguments]
        self._views: dict[tuple[int, ...], tuple[Tensor, Tensor, list[Tensor]]] = {}

    def at(self, r: int, c: int) -> Here:
        """Evaluate a tile; what lay in the buffers before is gone."""
        phi, values, outs = self._buffers(*self.parts[0][r][c].shape)
        start = c * self.columns
        columns = slice(start, start + phi.shape[2])
        pulls = [
            evaluate(self.parts[i][r][c], columns, out, self.scratch.part(slot))[1]
            for slot, (evaluate, i, out) in enumerate(
                zip(self.functions.each, self.functions.arguments, outs, strict=True)
            )
        ]
        return Here(r, c, self._factors(phi, values), values, pulls)

    def _buffers(self, rows: int, inputs: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Values as ``(rows, functions, inputs)``, as they lie, and those of each slot."""
        if (rows, inputs) not in self._views:
            if self.project is None:
                values = phi = self.scratch.take("phi", rows, self.known, inputs)
            else:
                values = self.scratch.take("phi", self.known, rows, inputs)
                phi = values.permute(1, 0, 2)
            outs = list(torch.split(phi, list(self.functions.widths), 1))
            self._views[rows, inputs] = phi, values, outs
        return self._views[rows, inputs]

    def _factors(self, phi: Tensor, values: Tensor) -> list[Tensor]:
        rows, _, inputs = phi.shape
        if self.project is None:
            return [phi.view(rows, self.known * inputs)]
        psi = self.scratch.take("psi", len(self.project), rows, inputs)
        torch.mm(self.project, values.view(self.known, -1), out=psi.view(len(psi), -1))
        return list(psi.unbind())

    def begin(self, here: Here, gy: Tensor | None) -> None:
        """Make room for gradients.

        Args:
            here: the tile.
            gy: gradient of all outputs, ``(rows, out)``; None: not in this round.
        """
        if not self.slopes:
            return
        rows = len(here.factors[0])
        if self.project is None:
            flat = self.scratch.take("gpsi", *here.factors[0].shape)
            inputs = flat.shape[1] // self.known
            here.gradient, here.gradients = flat.view(rows, self.known, inputs), [flat]
            return
        whole = self.scratch.take("gpsi", *(len(self.project), rows, here.factors[0].shape[1]))
        here.gradient, here.gradients = whole, list(whole.unbind())
        if self.shift:
            last = here.gradients[-1]
            if gy is None:
                last.zero_()
            else:
                last.copy_(gy.sum(1, keepdim=True).expand_as(last))

    def pull(self, here: Here, gx: Sequence[Tensor | None], g_project: Tensor | None) -> None:
        """Add to the gradients of the arguments and of the projection."""
        g = here.gradient
        if g is None:
            return
        if self.project is not None and g_project is not None:
            flat, values = g.view(len(g), -1), here.values
            g_project.addmm_(flat, values.view(self.known, -1).T)
            if not any(self.learned) and not any(t is not None for t in gx):
                return
            back = self.scratch.take("gphi", *values.shape)
            torch.mm(self.project.T, flat, out=back.view(self.known, -1))
            g = back.permute(1, 0, 2)
        row, column = here.r * self.rows, here.c * self.columns
        each = torch.split(g, list(self.functions.widths), 1)
        indices = self.functions.arguments
        for i, learned, pull, part in zip(indices, self.learned, here.pulls, each, strict=True):
            target = gx[i]
            if target is not None:
                there = target[row : row + self.rows, column : column + self.columns]
                there += pull(part)
            elif learned:
                pull(part)


def add_product(target: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """Target = a b if ``first``, else target += a b."""
    if first:
        torch.mm(a, b, out=target)
    else:
        target.addmm_(a, b)


def _projection(way: Way) -> Tensor | None:
    """Projection and shift of the way, if any, in one matrix, ``(width or one more, dim_w)``."""
    if way.project is None:
        return None
    rows = way.project.detach()
    return rows if way.shift is None else torch.cat([rows, way.shift.detach()[None]])
