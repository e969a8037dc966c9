"""Finding the piece of a piecewise linear function that a number lies in."""

import torch
from torch import Tensor

from kanmeta.scratch import Scratch

__all__ = ["Finder"]

_CELLS = 4096
_STEPS = 6  # with more bounds in one cell, bisection is faster


class Finder:
    """Counts the ``bounds``, ascending, that lie below each number, as ``torch.bucketize`` does.

    Bisection guesses wrong half of its branches. Here the range of the bounds is cut in even cells
    and a table says how many bounds lie in cells before. The few in the same cell are compared with
    one after the other. Which cell a number is in never decreases with the number, also as rounded,
    so the counts are exact.
    """

    def __init__(self, bounds: Tensor) -> None:
        """Make the table, unless bisection is better."""
        self.bounds = bounds
        self.steps = _STEPS + 1
        finite = bounds[bounds.isfinite()]
        if bounds.device.type != "cpu" or len(finite) < 2:  # elsewhere branches are not guessed
            return
        first, width = float(finite[0]), float(finite[-1] - finite[0])
        if not 0 < width < float("inf"):
            return
        self.scale = (_CELLS - 2) / width
        self.shift = 1 - first * self.scale
        if not (abs(self.shift) < float("inf") and self.scale < float("inf")):
            return
        counts = torch.bincount(self._cells(bounds, Scratch(bounds)), minlength=_CELLS)
        self.steps = int(counts.max())
        self.before = counts.cumsum(0) - counts
        self.padded = torch.cat([bounds, bounds.new_full((1,), torch.inf)])

    def _cells(self, z: Tensor, scratch: Scratch) -> Tensor:
        place = torch.mul(z, self.scale, out=scratch.take("place", len(z))).add_(self.shift)
        place.nan_to_num_(0, _CELLS, 0).clamp_(0, _CELLS - 1)
        return scratch.take("cells", len(z), dtype=torch.int64).copy_(place)

    def find(self, z: Tensor, scratch: Scratch) -> Tensor:
        """Pieces of ``z``, ``(E,)``, int64; may lie in ``scratch``."""
        piece = scratch.take("piece", len(z), dtype=torch.int64)
        if self.steps > _STEPS:
            return torch.bucketize(z, self.bounds, out=piece)
        torch.index_select(self.before, 0, self._cells(z, scratch), out=piece)
        bound = scratch.take("place", len(z))
        for _ in range(self.steps):
            torch.index_select(self.padded, 0, piece, out=bound)
            piece.add_(torch.gt(z, bound))
        return piece
