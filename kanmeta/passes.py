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
from kanmeta.coefficients import Tile
from kanmeta.functions import Functions
from kanmeta.scratch import Scratch
from kanmeta.tiles import Way
from kanmeta.values import Values, add_product

__all__ = ["Pass", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """Which gradients a backward pass computes.

    Attributes:
        arguments: of each argument.
        coefficients: of prompts and meta-learner.
        parameters: of tensors that the functions themselves depend on.
    """

    arguments: Sequence[bool]
    coefficients: bool
    parameters: bool

    @property
    def basis(self) -> bool:
        """Whether gradients flow back to the basis."""
        return any(self.arguments) or self.parameters


_Found = tuple[list[Tensor | None], Tensor | None, list[Tensor]]


class Pass:
    """One pass over the tiles of a layer.

    Args:
        functions: the basis.
        arguments: each ``(N, in)``.
        z: prompts, ``(in, out, dim_z)`` or, unless ``input_major``, ``(out, in, dim_z)``.
        way: how coefficients and basis are contracted.
        budget: bytes of scratch. Tables of a meta-learner that take more than half of it, those of
            some 500 hidden units for one number, come on top.
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
        self.arguments, self.way, self.wanted = arguments, way, wanted
        self.coefficients, self.input_major = way.coefficients, input_major
        self.z = z.detach()
        _, outputs, self.dim_z = sizes = z.shape if input_major else z.transpose(0, 1).shape
        self.outputs, self.numbers = outputs, budget // z.element_size()
        back, number = wanted is not None, len(arguments[0])
        slopes = wanted is not None and (wanted.basis or way.project is not None)
        problem = _problem(number, sizes, functions, way, back, slopes)
        room = self.coefficients.reserve(self.numbers)
        # A wide meta-learner has large tables. Without room for tiles a step would take minutes.
        room = max(room - self.coefficients.fixed, room // 2)
        self.sizes = cut = tiling.cut(problem, room)
        self.scratch = Scratch(arguments[0])
        self.values = Values(functions, arguments, cut.rows, cut.columns, way, self.scratch, slopes)
        self.prompts = self._tiles_of(self.z)
        self.whole = cut.rows >= number  # then a basis serves all tiles of outputs

    def _tiles_of(self, edges: Tensor) -> list[Tensors]:
        """``(out, in, *)``, or as prompts lie, cut in tiles ``(*, columns, outputs)``."""
        moved = edges if self.input_major else edges.transpose(0, 1)
        if edges.dim() == 3:
            moved = moved.permute(2, 0, 1)
        axis = edges.dim() - 2
        return [
            tiling.parts(part, self.sizes.outputs, axis + 1)
            for part in tiling.parts(moved, self.sizes.columns, axis)
        ]

    def _cut(self, y: Tensor) -> list[Tensors]:
        """``(N, out)`` cut in rows and outputs."""
        return [
            tiling.parts(row, self.sizes.outputs, 1) for row in tiling.parts(y, self.sizes.rows, 0)
        ]

    def _tile(self, c: int, o: int, notes: list[Tensors] | None, whole: bool = True) -> Tile:
        """Coefficients of a tile; ``whole``: see :meth:`kanmeta.tiles.Coefficients.tile`."""
        part = self.prompts[c][o]
        z = self.scratch.take("z", *part.shape).copy_(part).view(self.dim_z, -1)
        note = None if notes is None else notes[c][o]
        return self.coefficients.tile(z, note, self.scratch, whole)

    def _blocks(self, w: Tensor, c: int, o: int) -> Sequence[Tensor]:
        """Coefficients ``(width, E)`` as what factors of the basis are multiplied with."""
        columns, outs = self.prompts[c][o].shape[1:]
        if self.way.project is None:
            return [w.view(-1, outs)]
        return w.view(len(w), columns, outs).unbind()

    def forward(self, keep: bool) -> tuple[Tensor, Tensor | None]:
        """Outputs ``(N, out)``, and what is kept of the edges for backward."""
        found = self.coefficients.notes(self.z, self.numbers)
        notes = None if found is None else self._tiles_of(found)
        y = self.arguments[0].new_zeros(len(self.arguments[0]), self.outputs)
        parts = self._cut(y)
        for c, edges in enumerate(self.prompts):
            here = self.values.at(0, c) if self.whole else None
            for o in range(len(edges)):
                matrices = self._blocks(self._tile(c, o, notes).w, c, o)
                for r, row in enumerate(parts):
                    factors = (here or self.values.at(r, c)).factors
                    for factor, matrix in zip(factors, matrices, strict=False):
                        row[o].addmm_(factor, matrix)
                    if o == 0 and self.way.shift is not None:
                        for part in row:
                            part += factors[-1].sum(1, keepdim=True)
        return y, found if keep else None

    def backward(self, gy: Tensor, notes: Tensor | None) -> _Found:
        """Gradients of arguments, of z, and of the tables (and projection and shift) of the way."""
        assert self.wanted is not None
        coefficients, values, learn = self.coefficients, self.values, self.wanted.coefficients
        gx = [
            torch.zeros_like(a) if g else None
            for a, g in zip(self.arguments, self.wanted.arguments, strict=True)
        ]
        sums = coefficients.sums()
        project = values.project
        g_project = None if project is None else torch.zeros_like(project)
        gz = torch.empty_like(self.z) if learn else None
        targets = None if gz is None else self._tiles_of(gz)
        cut = None if notes is None else self._tiles_of(notes)
        gy = gy.contiguous()
        rows, parts = tiling.parts(gy, self.sizes.rows, 0), self._cut(gy)
        for c, edges in enumerate(self.prompts):
            here = values.at(0, c)
            values.begin(here, rows[0])
            for o in range(len(edges)):
                tile = self._tile(c, o, cut, values.slopes)
                gw = self._room(tile.w) if learn else None
                matrices = self._blocks(tile.w, c, o)
                g_matrices = [] if gw is None else self._blocks(gw, c, o)
                for r, row in enumerate(parts):
                    if not self.whole and (r, o) != (0, 0):
                        here = values.at(r, c)
                        values.begin(here, rows[r] if o == 0 else None)
                    here.add(row[o], matrices)  # before gw, which may overwrite w
                    for factor, target in zip(here.factors, g_matrices, strict=False):
                        add_product(target, factor.T, row[o], r == 0)
                    if not self.whole:
                        values.pull(here, gx, g_project)
                if gw is not None and targets is not None:
                    edge = coefficients.pull(tile, gw, sums, self.scratch)
                    targets[c][o].copy_(edge.view(targets[c][o].shape))
            if self.whole:
                values.pull(here, gx, g_project)
        found = list(coefficients.total(sums))
        if g_project is not None:
            found.append(g_project[: coefficients.width])
            if self.way.shift is not None:
                found.append(g_project[coefficients.width])
        return gx, gz, found

    def _room(self, w: Tensor) -> Tensor:
        """For the gradient of coefficients ``w``: their own, if nothing needs them any more."""
        return w if self.whole and self.coefficients.spent else self.scratch.take("gw", *w.shape)


def _problem(
    rows: int,
    prompts: Sequence[int],
    functions: Functions,
    way: Way,
    back: bool,
    slopes: bool,
) -> tiling.Problem:
    """What a tile takes; ``prompts``: inputs, outputs, dim_z."""
    inputs, outputs, dim_z = prompts
    known, coefficients = sum(functions.widths), way.coefficients
    a_value = known * (2 if slopes else 1) + sum(each.extra(slopes) for each in functions.each)
    if way.project is not None:
        a_value += (1 + back) * (len(way.project) + (way.shift is not None))
    an_edge = (1 + back) * dim_z + coefficients.width + coefficients.extra
    gradient = coefficients.width if back else 0
    if not coefficients.spent:
        an_edge, gradient = an_edge + gradient, 0
    return tiling.Problem(rows, inputs, outputs, an_edge, gradient, a_value, known)
