"""Tensor layouts as einops patterns, and the axis sizes that shapes imply.

A layout names the axes of a tensor: ``"o i k"`` is a 3-D tensor, ``"o (i k)"`` a 2-D one whose
second dimension runs over ``i`` (slow) and ``k`` (fast), ``"1"`` is a dimension of size 1. Two
layouts joined by ``+`` lie in one tensor, one after the other along the dimension in which they
differ: ``"o (i k) + o i"``. Everything here is a pure function.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from kanmeta.errors import LayoutError

__all__ = [
    "TAP_AXES",
    "Rearrangement",
    "axes",
    "expand",
    "is_layout",
    "restrict",
    "shape",
    "solve",
    "taps",
]

TAP_AXES = ("kd", "kh", "kw")
"""Names of the axes of a convolution kernel; ``...`` in a layout stands for the last of them."""

_DIMENSION = re.compile(r"\(([\w ]+)\)|(\w+)")

Sizes = Mapping[str, int]


_LAYOUT = re.compile(r"\s*(\([\w ]+\)|\w+|1?\.\.\.)(\s+(\([\w ]+\)|\w+|1?\.\.\.))*\s*")


def is_layout(text: str) -> bool:
    """Whether ``text`` can be read as a layout."""
    return isinstance(text, str) and all(_LAYOUT.fullmatch(block) for block in text.split("+"))


def blocks(layout: str) -> tuple[str, ...]:
    """Layouts that a tensor is made of: ``"o (i k) + o i"`` gives ``("o (i k)", "o i")``."""
    return tuple(block.strip() for block in layout.split("+"))


def dimensions(block: str) -> tuple[tuple[str, ...], ...]:
    """Axes of each dimension of one block: ``"o (i k) 1"`` gives ``(("o",), ("i", "k"), ())``."""
    found = _DIMENSION.findall(block)
    return tuple(tuple(a for a in (inner or one).split() if a != "1") for inner, one in found)


def axes(layout: str) -> tuple[str, ...]:
    """All axes of a layout in order: ``"o (i k) + o i"`` gives ``("o", "i", "k")``."""
    every = (a for block in blocks(layout) for dimension in dimensions(block) for a in dimension)
    return tuple(dict.fromkeys(every))


def restrict(layout: str, keep: Iterable[str]) -> str:
    """Return the layout without the axes that are not in ``keep``: ``"o (i k)"`` to ``"o i"``."""
    wanted = set(keep)
    kept = [[a for a in dimension if a in wanted] for dimension in dimensions(layout)]
    return " ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" for d in kept if d)


def taps(layout: str, ndim: int) -> tuple[str, ...]:
    """Kernel axes that ``...`` stands for in the layout of a tensor of ``ndim`` dimensions.

    Raises:
        LayoutError: the layout has ``...`` but the tensor has no room for 1 to 3 of them.
    """
    if "..." not in layout:
        return ()
    rest = blocks(layout)[0].replace("1...", "").replace("...", "")
    number = ndim - len(dimensions(rest))
    if not 1 <= number <= len(TAP_AXES):
        raise LayoutError(
            f"a tensor of {ndim} dimensions does not fit the layout '{layout}' with 1 to "
            f"{len(TAP_AXES)} kernel axes in place of '...'"
        )
    return TAP_AXES[-number:]


def expand(layout: str, kernel: Sequence[str]) -> str:
    """Put the names of kernel axes in place of ``...``, and as many ones in place of ``1...``."""
    ones = " ".join("1" for _ in kernel)
    return layout.replace("1...", ones).replace("...", " ".join(kernel))


def shape(layout: str, sizes: Sizes) -> tuple[int, ...]:
    """Shape of a tensor of this layout."""
    each = [[math.prod(sizes[a] for a in d) for d in dimensions(b)] for b in blocks(layout)]
    return tuple(each[0][d] if len(set(s)) == 1 else sum(s) for d, s in enumerate(zip(*each)))  # noqa: B905 - all blocks have as many dimensions


def solve(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], known: Sizes | None = None
) -> dict[str, int]:
    """Find the size of every axis from shapes.

    Args:
        tensors: tensor name -> (layout, shape). A merged dimension is solved once all but one of
            its axes are known from other tensors.
        known: sizes that are known already.

    Raises:
        LayoutError: a shape has the wrong number of dimensions, two tensors disagree on an axis,
            or an axis stays unknown.
    """
    sizes = dict(known or {})
    pending: list[tuple[str, list[tuple[str, ...]], int]] = []
    for name, (layout, actual) in tensors.items():
        parsed = [dimensions(block) for block in blocks(layout)]
        if len(parsed[0]) != len(actual):
            raise LayoutError(
                f"{name} has shape {tuple(actual)}, but its layout '{layout}' "
                f"has {len(parsed[0])} dimensions"
            )
        for terms, size in zip(zip(*parsed, strict=True), actual, strict=True):
            # Blocks that agree on a dimension share it; those that do not lie one after the other.
            pending.append((name, list(dict.fromkeys(terms)), size))
    while pending:
        unsolved = [item for item in pending if not _solve_dimension(*item, sizes)]
        if len(unsolved) == len(pending):
            names = sorted({name for name, _, _ in unsolved})
            raise LayoutError(f"axis sizes of {', '.join(names)} cannot be told from the shapes")
        pending = unsolved
    return sizes


def _solve_dimension(
    name: str, terms: list[tuple[str, ...]], size: int, sizes: dict[str, int]
) -> bool:
    """Solve size = sum over terms of the product of their axes for the one unknown axis.

    Returns:
        Whether it could be solved, or checked; ``sizes`` is completed.
    """
    unknown = {axis for term in terms for axis in term if axis not in sizes}
    if len(unknown) > 1:
        return False
    product, rest = 0, 0  # size = product * (unknown size) + rest
    for term in terms:
        value = math.prod(sizes[axis] for axis in term if axis in sizes)
        product, rest = (product + value, rest) if unknown & {*term} else (product, rest + value)
    label = f"{name}: dimension ({' + '.join(' '.join(term) for term in terms)}) has size {size}"
    if not unknown:
        if rest != size:
            raise LayoutError(f"{label}, expected {rest} from the other tensors")
        return True
    if product == 0 or (size - rest) % product or size < rest:
        beyond = f"{rest} more than " if rest else ""
        raise LayoutError(f"{label}, which is not {beyond}a multiple of {product}")
    sizes[unknown.pop()] = (size - rest) // product
    return True


@dataclass(frozen=True)
class Rearrangement:
    """How a tensor of one layout and edge-major coefficients turn into each other.

    Everything is worked out when it is made, because it is applied in every forward pass.

    >>> import torch
    >>> both_ways = Rearrangement.of("o (i k)", ("o", "i"), {"o": 2, "i": 3, "k": 4})
    >>> both_ways.to_edges(torch.zeros(2, 12)).shape
    torch.Size([2, 3, 4])
    >>> both_ways.from_edges(torch.zeros(2, 3, 4)).shape
    torch.Size([2, 12])

    Attributes:
        layout: of the tensor.
        shape: of the tensor.
        width: coefficients of an edge in it.
        viewed: shape under ``layout``; differs from ``shape`` where the tensor is a reshaped one.
        blocks: layout of each block, its pattern with edges first, its coefficients of an edge and
            its length along ``dimension``.
        dimension: along which blocks lie one after the other.
    """

    layout: str
    sizes: Sizes
    shape: tuple[int, ...]
    width: int
    viewed: tuple[int, ...]
    blocks: tuple[tuple[str, str, int, int], ...]
    dimension: int

    @classmethod
    def of(
        cls, layout: str, edges: tuple[str, ...], sizes: Sizes, stored: str | None = None
    ) -> "Rearrangement":
        """For tensors of ``layout``; axes that are not in ``edges`` run over coefficients."""
        shapes = [shape(block, sizes) for block in blocks(layout)]
        differs = [len({*d}) > 1 for d in zip(*map(dimensions, blocks(layout)), strict=True)]
        dimension = differs.index(True) if True in differs else 0
        parts = []
        for block, lengths in zip(blocks(layout), shapes, strict=True):
            coefficients = [axis for axis in axes(block) if axis not in edges]
            pattern = f"{' '.join(edges)} ({' '.join(coefficients)})"
            width = math.prod(sizes[axis] for axis in coefficients)
            parts.append((block, pattern, width, lengths[dimension]))
        viewed = shape(layout, sizes)
        return cls(
            layout=layout,
            sizes={axis: sizes[axis] for axis in axes(layout)},
            shape=viewed if stored is None else shape(stored, sizes),
            width=sum(width for _, _, width, _ in parts),
            viewed=viewed,
            blocks=tuple(parts),
            dimension=dimension,
        )

    def to_edges(self, tensor: Tensor) -> Tensor:
        """From the library's layout to ``(*edge axes, coefficients of an edge)``."""
        tensor = tensor.reshape(self.viewed)
        pieces = torch.split(tensor, [length for *_, length in self.blocks], dim=self.dimension)
        parts = [
            rearrange(piece, f"{block} -> {pattern}", **self._sizes(block))
            for piece, (block, pattern, _, _) in zip(pieces, self.blocks, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def from_edges(self, tensor: Tensor) -> Tensor:
        """Inverse of :meth:`to_edges`; contiguous, because libraries call ``view`` on it."""
        pieces = torch.split(tensor, [width for _, _, width, _ in self.blocks], dim=-1)
        parts = [
            rearrange(piece, f"{pattern} -> {block}", **self._sizes(block))
            for piece, (block, pattern, _, _) in zip(pieces, self.blocks, strict=True)
        ]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dimension)
        return whole.contiguous().view(self.shape)

    def _sizes(self, block: str) -> dict[str, int]:
        return {axis: self.sizes[axis] for axis in axes(block)}
