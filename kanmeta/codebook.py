"""Few-bit numbers: the optimal scalar quantiser and packing. Pure functions on tensors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BITS", "layer_levels", "pack", "packed_bytes", "quantise", "unpack"]

BITS = (2, 3, 4, 8)
"""Widths of codes."""

_MOST = 2 ** BITS[-1]  # entries of a codebook: its codes have the widest width
_ENTRY = 32  # bits of an entry

_BINS = 512  # of each kind; the quantiser is exactly optimal up to 1024 distinct values
_ROUNDS = 32  # of Lloyd's algorithm, on all values


def layer_levels(levels: int, edges: Sequence[int]) -> list[int]:
    """Entries of the codebooks of each layer, of which the largest layer's have ``levels``.

    >>> layer_levels(16, [784 * 32, 32 * 10])
    [16, 58]

    The relative error that rounding to L entries makes in a layer's output is proportional to 1/L,
    however many edges the layer has, while its codes take ``edges * log2(L)`` bits. The sum of all
    squared errors is smallest, for as many bits, where L is proportional to ``1 / sqrt(edges)``. At
    most 256, and at most as many as take no more room than their codes, where that leaves
    ``levels``.

    Args:
        levels: 1 to 256.
        edges: of each layer, at least 1.
    """
    most = max(edges)
    return [_entries(levels, min(_MOST, int(levels * math.sqrt(most / e))), e) for e in edges]


def _entries(least: int, wanted: int, edges: int) -> int:
    fits = (n for n in range(wanted, least, -1) if n * _ENTRY <= edges * math.log2(n))
    return next(fits, least)


def quantise(values: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codebook with the smallest mean squared error, and the code of every value.

    k-means in one dimension, where optimal groups are intervals: by dynamic programming over
    distinct values (or, of many, over bins), then by Lloyd's algorithm on the values themselves.

    Args:
        values: ``(n,)``, finite, n >= 1.
        levels: of the codebook, 1 to 256.

    Returns:
        ``(min(levels, distinct values),)`` ascending, in the dtype of ``values``; and uint8,
        ``(n,)``.
    """
    ordered = values.detach().double().cpu().sort().values
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    if len(distinct) <= levels:
        return _encode(values, distinct)
    if len(distinct) > 2 * _BINS:
        counts = _bin_counts(ordered)
    centres = _lloyd(ordered, _split(ordered, counts, levels))
    return _encode(values, centres)


def _encode(values: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    codebook = torch.unique_consecutive(centres.to(values.dtype)).to(values.device)
    return codebook, torch.bucketize(values.detach().double(), _middles(codebook)).to(torch.uint8)


def _middles(codebook: Tensor) -> Tensor:
    centres = codebook.double()
    return (centres[1:] + centres[:-1]) / 2


def _bin_counts(ordered: Tensor) -> Tensor:
    """Numbers of values in bins, half of them of equal counts, half of equal widths."""
    n = len(ordered)
    places = torch.linspace(0, n, _BINS + 1).long()
    low, high = float(ordered[0]), float(ordered[-1])
    edges = torch.linspace(low, high, _BINS + 1, dtype=ordered.dtype)[1:-1]
    cuts = torch.cat([places, torch.searchsorted(ordered, edges)]).sort().values
    counts: Tensor = torch.unique_consecutive(cuts).diff()
    return counts


def _split(ordered: Tensor, counts: Tensor, levels: int) -> Tensor:
    """Means of the best ``levels`` groups of neighbouring bins, ascending."""
    cut = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    total = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])[cut]
    # The sum of squares of all groups together is fixed: the best split has the largest sum over
    # groups of (sum of values)^2 / number. Centred, so that nothing cancels.
    centred = total - cut.double() * (total[-1] / len(ordered))
    number = (cut[None] - cut[:, None]).double()
    gain = (centred[None] - centred[:, None]).square() / number.clamp(min=1)
    gain[number <= 0] = -torch.inf  # (from, to)
    best = gain[0].clone()  # of the first j bins in one group
    origins = []
    for _ in range(levels - 1):
        best, origin = (best[:, None] + gain).max(dim=0)
        origins.append(origin)
    ends = [len(cut) - 1]
    for origin in reversed(origins):
        ends.append(int(origin[ends[-1]]))
    ends.append(0)
    ends.reverse()
    place = torch.tensor(ends)
    return total[place].diff() / cut[place].diff()


def _lloyd(ordered: Tensor, centres: Tensor) -> Tensor:
    """Move centres to the means of the values next to them until nothing moves."""
    total = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    for _ in range(_ROUNDS):
        inner = torch.searchsorted(ordered, _middles(centres))
        cut = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        number = cut.diff()
        new = torch.where(number > 0, total[cut].diff() / number.clamp(min=1), centres)
        if torch.equal(new, centres):
            break
        centres = new
    return centres.sort().values


def packed_bytes(number: int, bits: int) -> int:
    """Bytes that ``pack`` makes of ``number`` codes."""
    return -(-number // (8 // bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Put ``8 // bits`` codes into each byte, the first in the lowest bits.

    Args:
        codes: uint8, ``(n,)``, below ``2**bits``.
        bits: one of :data:`BITS`. 3-bit codes go two to a byte: entropy coding takes the rest.
    """
    per = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -len(codes) % per)).view(-1, per)
    shifts = torch.arange(per, dtype=torch.uint8, device=codes.device) * bits
    return (padded << shifts).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, number: int) -> Tensor:
    """Inverse of :func:`pack`: uint8, ``(number,)``."""
    per = 8 // bits
    shifts = torch.arange(per, dtype=torch.uint8, device=packed.device) * bits
    codes = (packed[:, None] >> shifts) & (2**bits - 1)
    result: Tensor = codes.flatten()[:number]
    return result
