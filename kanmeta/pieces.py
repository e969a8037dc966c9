"""Finding the pieces of a piecewise linear function that numbers lie in."""

import torch
from torch import Tensor

__all__ = ["find"]

_CELLS = 4096
_PART = 16_384  # numbers at once: enough to hide the cost of calls, few enough for caches


def find(bounds: Tensor, z: Tensor, most: int = _PART) -> Tensor:
    """How many of ``bounds``, ascending, lie below each number, as ``torch.bucketize`` counts.

    Bisection guesses wrong half of its branches. Here the range of ``z`` is cut in even cells and a
    table says how many bounds lie in cells before. Only numbers that share a cell with a bound are
    bisected. Which cell a number is in never decreases with the number, also as rounded, so the
    counts are exact.

    Args:
        bounds: ``(B,)``.
        z: any shape.
        most: how many to look at at once; each takes 20 bytes meanwhile.

    Returns:
        uint8 where 255 bounds are not exceeded, else int32; the shape of ``z``.
    """
    flat = z.reshape(-1)
    found = flat.new_empty(len(flat), dtype=torch.uint8 if len(bounds) < 256 else torch.int32)
    table = _Table(bounds, flat) if len(flat) >= 2 * _CELLS and not flat.is_cuda else None
    step = max(1, min(most, _PART))
    parts = zip(torch.split(flat, step), torch.split(found, step), strict=True)
    for numbers, out in parts:
        if table is None or not table.exact:
            out.copy_(torch.bucketize(numbers, bounds))
        else:
            table.find(numbers, out)
    return found.view(z.shape)


class _Table:
    """Cells of the range of ``z``; ``exact`` tells whether there can be any."""

    def __init__(self, bounds: Tensor, z: Tensor) -> None:
        self.bounds = bounds
        low, high = (float(end) for end in torch.aminmax(z))
        self.low, wide = low, high - low
        self.scale = _CELLS / wide if wide > 0 else 0.0
        # Not so where a prompt or the meta-learner is not finite.
        self.exact = (
            0 < wide < torch.finfo(z.dtype).max
            and self.scale < torch.finfo(z.dtype).max
            and not bool(bounds.isnan().any())
        )
        if not self.exact:
            return
        counts = torch.bincount(self._cells(bounds.clamp(low, high)), minlength=_CELLS + 2)
        self.before = torch.where(counts > 0, -1, counts.cumsum(0) - counts).to(torch.int32)

    def _cells(self, z: Tensor) -> Tensor:
        return z.sub(self.low).mul_(self.scale).long()

    def find(self, z: Tensor, out: Tensor) -> None:
        piece = self.before.index_select(0, self._cells(z))
        unsure = (piece < 0).nonzero()[:, 0]
        out.copy_(piece)
        counts = torch.bucketize(z.index_select(0, unsure), self.bounds)
        out.index_copy_(0, unsure, counts.to(out.dtype))
