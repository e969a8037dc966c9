"""Tensor layouts as einops patterns, and the axis sizes that shapes imply.

A layout names the axes of a tensor: ``"o i k"`` is a 3-D tensor, ``"o (i k)"`` a 2-D one whose
second dimension runs over ``i`` (slow) and ``k`` (fast). Everything here is a pure function.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from kanmeta.errors import LayoutError

__all__ = ["Rearrangement", "axes", "restrict", "shape", "solve"]

_DIMENSION = re.compile(r"\(([\w ]+)\)|(\w+)")


def dimensions(layout: str) -> tuple[tuple[str, ...], ...]:
    """Axes of each tensor dimension: ``"o (i k)"`` gives ``(("o",), ("i", "k"))``."""
    return tuple(tuple((inner or single).split()) for inner, single in _DIMENSION.findall(layout))


def axes(layout: str) -> tuple[str, ...]:
    """All axes of a layout in order: ``"o (i k)"`` gives ``("o", "i", "k")``."""
    return tuple(axis for dimension in dimensions(layout) for axis in dimension)


def restrict(layout: str, keep: Iterable[str]) -> str:
    """Return the layout without the axes that are not in ``keep``: ``"o (i k)"`` to ``"o i"``."""
    wanted = set(keep)
    kept = [[a for a in dimension if a in wanted] for dimension in dimensions(layout)]
    return " ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" for d in kept if d)


def shape(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of a tensor of this layout."""
    return tuple(math.prod(sizes[axis] for axis in dimension) for dimension in dimensions(layout))


def solve(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], known: Mapping[str, int] | None = None
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
    pending: list[tuple[str, tuple[str, ...], int]] = []
    for name, (layout, actual) in tensors.items():
        parsed = dimensions(layout)
        if len(parsed) != len(actual):
            raise LayoutError(
                f"{name} has shape {tuple(actual)}, but its layout '{layout}' "
                f"has {len(parsed)} dimensions"
            )
        pending += [(name, d, size) for d, size in zip(parsed, actual, strict=True)]
    while pending:
        unsolved = []
        for name, dimension, size in pending:
            unknown = [axis for axis in dimension if axis not in sizes]
            product = math.prod(sizes[axis] for axis in dimension if axis in sizes)
            if len(unknown) > 1:
                unsolved.append((name, dimension, size))
            elif not unknown and product != size:
                raise LayoutError(
                    f"{name}: dimension ({' '.join(dimension)}) has size {size}, "
                    f"expected {product} from the other tensors"
                )
            elif unknown:
                if product == 0 or size % product:
                    raise LayoutError(
                        f"{name}: dimension ({' '.join(dimension)}) has size {size}, "
                        f"which is not a multiple of {product}"
                    )
                sizes[unknown[0]] = size // product
        if len(unsolved) == len(pending):
            names = sorted({name for name, _, _ in unsolved})
            raise LayoutError(f"axis sizes of {', '.join(names)} cannot be told from the shapes")
        pending = unsolved
    return sizes


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
    """

    layout: str
    edge_pattern: str
    sizes: Mapping[str, int]
    shape: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, layout: str, edges: tuple[str, ...], sizes: Mapping[str, int]) -> "Rearrangement":
        """For tensors of ``layout``; axes that are not in ``edges`` run over coefficients."""
        coefficients = [axis for axis in axes(layout) if axis not in edges]
        return cls(
            layout=layout,
            edge_pattern=f"{' '.join(edges)} ({' '.join(coefficients)})",
            sizes={axis: sizes[axis] for axis in axes(layout)},
            shape=shape(layout, sizes),
            width=math.prod(sizes[axis] for axis in coefficients),
        )

    def to_edges(self, tensor: Tensor) -> Tensor:
        """From the library's layout to ``(*edge axes, coefficients of an edge)``."""
        return rearrange(tensor, f"{self.layout} -> {self.edge_pattern}", **self.sizes)

    def from_edges(self, tensor: Tensor) -> Tensor:
        """Inverse of :meth:`to_edges`; contiguous, because libraries call ``view`` on it."""
        return rearrange(tensor, f"{self.edge_pattern} -> {self.layout}", **self.sizes).contiguous()
