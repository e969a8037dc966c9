"""Coefficients of a tile of edges, as a matrix product needs them, and their gradients.

A tile is a rectangle of inputs and outputs: ``(width, inputs * outputs)``, input-major.
See :mod:`kanmeta.tiles` for what each kind is for.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kanmeta.blocks import Tensors
from kanmeta.scratch import Scratch

__all__ = ["Coefficients", "Tile"]


@dataclass(frozen=True)
class Tile:
    """Coefficients of a tile of E edges.

    Attributes:
        z: prompts, ``(dim_z, E)``.
        w: coefficients, ``(width, E)``.
        kept: what pulling gradients back needs beside them.
    """

    z: Tensor
    w: Tensor
    kept: object = None


class Coefficients(Protocol):
    """How the coefficients of tiles are generated.

    Attributes:
        width: coefficients of an edge.
        extra: numbers an edge that generating and pulling take beside them, z and its gradient.
        fixed: numbers that tables and their gradients take, if they are many.
        spent: whether pulling does not need the coefficients: their gradient may overwrite them.
        tables: what they are generated from, differentiable in W1, b1, W2, b2.
    """

    width: int
    extra: int
    fixed: int = 0
    spent: bool
    tables: Tensors

    def reserve(self, numbers: int) -> int:
        """Set aside what generating a block of a tile's edges takes; how many numbers are left."""
        return numbers

    def notes(self, z: Tensor, numbers: int) -> Tensor | None:
        """What is worth keeping of each edge from forward to backward, a byte or two.

        Args:
            z: all prompts of the layer, ``(*, dim_z)``.
            numbers: how many may be alive meanwhile.

        Returns:
            The shape of ``z`` but its last axis; None: nothing.
        """
        return None

    def tile(self, z: Tensor, note: Tensor | None, scratch: Scratch, whole: bool = True) -> Tile:
        """Generate a tile.

        Args:
            z: its prompts, ``(dim_z, E)``.
            note: of its edges, ``(inputs, outputs)``.
            scratch: buffers, which the tile may lie in.
            whole: whether the coefficients are used; else they may be left uninitialised.
        """
        ...

    def sums(self) -> Tensors:
        """What :meth:`pull` adds to, all 0."""
        return tuple(torch.zeros_like(t) for t in self.tables)

    def pull(self, tile: Tile, gw: Tensor, sums: Tensors, scratch: Scratch) -> Tensor:
        """Gradient of z, ``(dim_z, E)``; adds that of the tables to ``sums``.

        Overwrites ``tile`` and ``gw``.
        """
        ...

    def total(self, sums: Tensors) -> Tensors:
        """Gradients of the tables."""
        return sums
