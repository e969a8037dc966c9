"""Forward and backward of a linear layer whose basis is known, tile by tile, without autograd.

Neither the basis, ``(N, in, dim_w)``, nor the coefficients, ``(out, in, dim_w)``, ever exist whole:
both are made for a tile, contracted at once, and made again in backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanmeta import tiling
from kanmeta.blocks import Tensors
from kanmeta.functions import Evaluate, Pull
from kanmeta.scratch import Scratch
from kanmeta.tiles import Way

__all__ = ["Functions", "Pass", "Wanted"]


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


@dataclass(frozen=True)
class Wanted:
    """Which gradients a backward pass computes.

    Attributes:
        arguments: of each argument.
        coefficients: of prompts and meta-learner.
    """

    arguments: Sequence[bool]
    coefficients: bool


_Found = tuple[list[Tensor | None], Tensor | None, list[Tensor]]


class Pass:
    """One pass over the tiles of a layer.

    Args:
        functions: the basis.
        arguments: each ``(N, in)``.
        z: prompts, ``(in, out, dim_z)`` or, unless ``input_major``, ``(out, in, dim_z)``.
        way: how coefficients and basis are contracted.
        budget: bytes of scratch.
        wanted: None: a forward pass.
    """

    def __init__(
        self,
        functions: Functions,
        arguments: Tensors,
        z: Tensor,
        input_major: bool,
        way: Way,
        budget: int,
        wanted: Wanted | None = None,
    ) -> None:
        """Choose the tiles and cut the tensors; nothing is computed."""
        self.functions, self.arguments, self.way, self.wanted = functions, arguments, way, wanted
        self.shape, self.input_major = z.shape, input_major
        self.z = z.detach() if input_major else z.detach().transpose(0, 1)
        self.inputs, self.outputs, self.dim_z = self.z.shape
        self.number = arguments[0].shape[0]
        self.known = sum(functions.widths)
        self.width = way.coefficients.width
        self.project = _projection(way)
        self.sizes = tiling.cut(self._problem(), budget // z.element_size())
        self.scratch = Scratch(arguments[0])
        self.columns = _slices(self.inputs, self.sizes.columns)
        self.outs = _slices(self.outputs, self.sizes.outputs)
        self.rows = _slices(self.number, self.sizes.rows)
        # Cutting in one call is cheaper than slicing one by one.
        self.prompts = self._tiles_of(self.z)
        self.parts = [
            [torch.split(row, self.sizes.columns, 1) for row in torch.split(a, self.sizes.rows)]
            for a in arguments
        ]
        self._values: dict[tuple[int, int], tuple[Tensor, Tensor, list[Tensor]]] = {}

    @property
    def _slopes(self) -> bool:
        """Whether gradients flow back to the basis."""
        return self.wanted is not None and (any(self.wanted.arguments) or self.project is not None)

    def _problem(self) -> tiling.Problem:
        # Coefficients, their gradient and one temporary; values of the basis and two temporaries,
        # their gradient; both projected.
        back = self.wanted is not None
        an_edge = (3 if back else 2) * self.width + self.way.coefficients.extra
        a_value = (4 if self._slopes else 3) * self.known
        if self.project is not None:
            a_value += (2 if back else 1) * len(self.project)
        return tiling.Problem(self.number, self.inputs, self.outputs, an_edge, a_value, self.known)

    def _tiles_of(self, edges: Tensor) -> list[list[Tensor]]:
        """``(in, out, dim_z)`` cut in tiles ``(dim_z, columns, outputs)``."""
        moved = edges.permute(2, 0, 1)
        return [
            list(torch.split(part, self.sizes.outputs, 2))
            for part in torch.split(moved, self.sizes.columns, 1)
        ]

    def _tile(self, c: int, o: int) -> Tensor:
        """Prompts of a tile, ``(dim_z, E)``."""
        part = self.prompts[c][o]
        return self.scratch.take("z", *part.shape).copy_(part).view(self.dim_z, -1)

    def _evaluate(self, r: int, c: int) -> tuple[Tensor, Tensor, list[Pull]]:
        """Values of all functions: as ``(rows, dim_w, inputs)``, as they lie, what pulls back."""
        x = self.parts[0][r][c]
        rows, inputs = x.shape
        shape = rows, inputs
        if shape not in self._values:
            if self.project is None:
                lying = phi = self.scratch.take("phi", rows, self.known, inputs)
            else:  # the projection is one matrix product if functions are the outermost
                lying = self.scratch.take("phi", self.known, rows, inputs)
                phi = lying.permute(1, 0, 2)
            self._values[shape] = phi, lying, list(torch.split(phi, list(self.functions.widths), 1))
        phi, lying, outs = self._values[shape]
        pulls = [
            evaluate(self.parts[i][r][c], self.columns[c], out, self.scratch.part(slot))[1]
            for slot, (evaluate, i, out) in enumerate(
                zip(self.functions.each, self.functions.arguments, outs, strict=True)
            )
        ]
        return phi, lying, pulls

    def _projected(self, phi: Tensor, lying: Tensor) -> list[Tensor]:
        """What blocks of coefficients are multiplied with, ``(rows, functions * inputs)`` each."""
        rows, _, inputs = phi.shape
        if self.project is None:
            return [phi.view(rows, -1)]
        psi = self.scratch.take("psi", len(self.project), rows, inputs)
        torch.mm(self.project, lying.view(self.known, -1), out=psi.view(len(psi), -1))
        return list(psi.unbind())

    def _blocks(self, w: Tensor, c: int, o: int) -> Sequence[Tensor]:
        """Coefficients ``(width, E)`` as what basis blocks are multiplied with."""
        columns, outs = self.prompts[c][o].shape[1:]
        if self.project is None:
            return [w.view(-1, outs)]
        return w.view(self.width, columns, outs).unbind()

    def forward(self, keep: bool) -> tuple[Tensor, Tensor | None]:
        """Outputs ``(N, out)``, and what is kept of the edges for backward, ``(in, out)``."""
        coefficients, shift = self.way.coefficients, self.way.shift is not None
        notes: Tensor | None = None
        y = self.arguments[0].new_zeros(self.number, self.outputs)
        ys = [torch.split(row, self.sizes.outputs, 1) for row in torch.split(y, self.sizes.rows)]
        whole = len(self.rows) == 1
        for c in range(len(self.columns)):
            psi: list[Tensor] = []
            for o in range(len(self.outs)):
                z = self._tile(c, o)
                note = coefficients.note(z, self.scratch)
                if keep and note is not None:  # by edge: backward may cut other tiles
                    if notes is None:
                        notes = note.new_empty(self.inputs, self.outputs)
                    part = notes[self.columns[c], self.outs[o]]
                    part.copy_(note.view(part.shape))
                w = self._blocks(coefficients.tile(z, note, self.scratch).w, c, o)
                for r in range(len(self.rows)):
                    if o == 0 or not whole:
                        phi, lying, _ = self._evaluate(r, c)
                        psi = self._projected(phi, lying)
                    if shift and o == 0:
                        y[self.rows[r]] += psi[-1].sum(1, keepdim=True)
                    for block, matrix in zip(psi, w, strict=False):
                        ys[r][o].addmm_(block, matrix)
        return y, notes

    def backward(self, gy: Tensor, notes: Tensor | None) -> _Found:
        """Gradients of arguments, of z, and of the tables (and projection and shift) of the way."""
        assert self.wanted is not None
        coefficients, learn = self.way.coefficients, self.wanted.coefficients
        gx = [
            torch.zeros_like(a) if g else None
            for a, g in zip(self.arguments, self.wanted.arguments, strict=True)
        ]
        sums = tuple(torch.zeros_like(t) for t in coefficients.tables)
        g_project = None if self.project is None else torch.zeros_like(self.project)
        gz = self.z.new_empty(self.shape) if learn else None
        targets: list[list[Tensor]] = []
        if gz is not None:
            targets = self._tiles_of(gz if self.input_major else gz.transpose(0, 1))
        gy = gy.contiguous()
        gys = [torch.split(row, self.sizes.outputs, 1) for row in torch.split(gy, self.sizes.rows)]
        whole = len(self.rows) == 1
        for c in range(len(self.columns)):
            basis = _Basis(self, 0, c, gy) if whole else None
            for o in range(len(self.outs)):
                note = None
                if notes is not None:
                    note = notes[self.columns[c], self.outs[o]].reshape(-1)
                tile = coefficients.tile(self._tile(c, o), note, self.scratch, self._slopes)
                gw = self.scratch.take("gw", *tile.w.shape) if learn else None
                matrices = self._blocks(tile.w, c, o)
                g_matrices = None if gw is None else self._blocks(gw, c, o)
                for r in range(len(self.rows)):
                    here = basis or _Basis(self, r, c, gy if o == 0 else None)
                    here.contract(gys[r][o], matrices, g_matrices, r == 0)
                    if not whole:
                        here.pull(gx, g_project)
                if gw is not None:
                    edges = coefficients.pull(tile, gw, sums, self.scratch)
                    targets[c][o].copy_(edges.view(targets[c][o].shape))
            if basis is not None:
                basis.pull(gx, g_project)
        found = list(sums)
        if g_project is not None:
            found.append(g_project[: self.width])
            if self.way.shift is not None:
                found.append(g_project[self.width])
        return gx, gz, found


class _Basis:
    """The basis of a tile in backward, and its gradient as it adds up over tiles of outputs."""

    def __init__(self, pass_: Pass, r: int, c: int, gy: Tensor | None) -> None:
        self.pass_, self.r, self.c = pass_, r, c
        phi, self.lying, self.pulls = pass_._evaluate(r, c)
        self.psi = pass_._projected(phi, self.lying)
        self.gpsi: list[Tensor] = []
        self.fresh = True
        rows, _, inputs = phi.shape
        if pass_.project is None:
            if pass_._slopes:
                flat = pass_.scratch.take("gpsi", rows, pass_.known * inputs)
                self.whole, self.gpsi = flat.view(phi.shape), [flat]
            return
        self.whole = pass_.scratch.take("gpsi", len(pass_.project), rows, inputs)
        self.gpsi = list(self.whole.unbind())
        if pass_.way.shift is not None:
            last = self.gpsi[-1]
            if gy is None:  # belongs to the first tile of outputs
                last.zero_()
            else:
                last.copy_(gy[pass_.rows[r]].sum(1, keepdim=True).expand_as(last))

    def contract(
        self,
        g: Tensor,
        matrices: Sequence[Tensor],
        g_matrices: Sequence[Tensor] | None,
        first: bool,
    ) -> None:
        """Gradients of coefficients (the ``first`` rows start them) and of their other factor."""
        if g_matrices is not None:
            for block, target in zip(self.psi, g_matrices, strict=False):
                _add(target, block.T, g, first)
        for target, matrix in zip(self.gpsi, matrices, strict=False):
            _add(target, g, matrix.T, self.fresh)
        self.fresh = False

    def pull(self, gx: Sequence[Tensor | None], g_project: Tensor | None) -> None:
        """On to the gradient of the arguments and of the projection."""
        pass_ = self.pass_
        if not pass_._slopes:
            return
        g = self.whole
        if pass_.project is not None and g_project is not None:
            flat, values = g.view(len(g), -1), self.lying.view(pass_.known, -1)
            g_project.addmm_(flat, values.T)
            if not any(t is not None for t in gx):
                return
            back = pass_.scratch.take("gphi", *self.lying.shape)
            torch.mm(pass_.project.T, flat, out=back.view(pass_.known, -1))
            g = back.permute(1, 0, 2)
        functions = pass_.functions
        parts = torch.split(g, list(functions.widths), 1)
        for i, pull, part in zip(functions.arguments, self.pulls, parts, strict=True):
            target = gx[i]
            if target is not None:
                target[pass_.rows[self.r], pass_.columns[self.c]] += pull(part)


def _add(target: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
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


def _slices(number: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, number)) for start in range(0, max(number, 1), step)]
