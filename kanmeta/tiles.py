"""Coefficients of a tile of edges, as a matrix product needs them, and their gradients.

A tile is a rectangle of inputs and outputs: ``(width, inputs * outputs)``, input-major.
The three ways to write y = sum_i sum_k B_k(x_i) w_k(z_io), w(z) = W2 a(W1 z + b1) + b2:

=============  ==========================================  =======================================
way            basis                                       coefficients of an edge
=============  ==========================================  =======================================
dense          B_k                                         w_k(z): dim_w numbers
factored       sum_k W2[k,h] B_k                           a(W1 z + b1)_h: ``hidden`` numbers
linear         sum_k (W2 W1)[k,d] B_k, a the identity      z_d: ``dim_z`` numbers
=============  ==========================================  =======================================

In the last two, sum_i sum_k B_k(x_i) b2_k (+ W2 b1) is added to all outputs alike.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kanmeta.generate import SLOPES, kinks, tables
from kanmeta.meta import ACTIVATIONS

__all__ = ["Coefficients", "Way", "way_of"]

Matrices = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
"""W1, b1, W2, b2."""


class Coefficients(Protocol):
    """How the coefficients of tiles are generated.

    Attributes:
        width: coefficients of an edge.
        extra: numbers an edge that generating takes beside them.
    """

    width: int
    extra: int

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """What they are generated from, differentiable in W1, b1, W2, b2."""
        ...

    def note(self, z: Tensor) -> Tensor | None:
        """What is worth keeping of a tile between forward and backward, a byte an edge."""
        ...

    def tile(self, z: Tensor, note: Tensor | None) -> tuple[Tensor, object]:
        """``(dim_z, E)`` to ``(width, E)``, and what :meth:`pull` needs."""
        ...

    def pull(
        self, z: Tensor, kept: object, w: Tensor, gw: Tensor, sums: tuple[Tensor, ...]
    ) -> Tensor:
        """Gradient of z; adds that of the tables to ``sums``."""
        ...


@dataclass(frozen=True)
class Way:
    """One of the three.

    Attributes:
        coefficients: of the edges.
        project: ``(width, dim_w)``: what the basis is multiplied with; None: nothing.
        shift: ``(dim_w,)``: coefficients that all edges have in common; None: none.
    """

    coefficients: Coefficients
    project: Tensor | None = None
    shift: Tensor | None = None


def way_of(matrices: Matrices, activation: str) -> Way:
    """The cheapest way, differentiable in ``matrices``."""
    weight1, bias1, weight2, bias2 = matrices
    hidden, dim_z = weight1.shape
    dim_w = len(weight2)
    if activation == "identity" and dim_z < dim_w:
        shift = bias2
        if bias1 is not None:
            shift = weight2 @ bias1 if bias2 is None else weight2 @ bias1 + bias2
        return Way(_Prompts(dim_z), (weight2 @ weight1).T, shift)
    if 2 * hidden <= dim_w:  # the product with the basis is what costs
        return Way(_Hidden(weight1, bias1, activation), weight2.T, bias2)
    if activation == "relu" and dim_z == 1:
        return Way(_Pieces(weight1, bias1, weight2, bias2))
    return Way(_Dense(weight1, bias1, weight2, bias2, activation))


class _Prompts:
    """The prompts themselves."""

    tables: tuple[Tensor, ...] = ()
    extra = 0

    def __init__(self, dim_z: int) -> None:
        self.width = dim_z

    def note(self, z: Tensor) -> Tensor | None:
        return None

    def tile(self, z: Tensor, note: Tensor | None) -> tuple[Tensor, object]:
        return z, None

    def pull(
        self, z: Tensor, kept: object, w: Tensor, gw: Tensor, sums: tuple[Tensor, ...]
    ) -> Tensor:
        return gw


class _Hidden:
    """a(W1 z + b1)."""

    def __init__(self, weight1: Tensor, bias1: Tensor | None, activation: str) -> None:
        self.width = len(weight1)
        self.extra = self.width if activation in ("relu", "identity") else 2 * self.width
        self.activation = activation
        bias = weight1.new_zeros(self.width) if bias1 is None else bias1
        self.tables = (weight1, bias[:, None])

    def note(self, z: Tensor) -> Tensor | None:
        return None

    def tile(self, z: Tensor, note: Tensor | None) -> tuple[Tensor, object]:
        weight1, bias1 = self.tables
        # A matrix product with one inner dimension is slow.
        a = (weight1 * z if len(z) == 1 else weight1 @ z).add_(bias1)
        return (
            (a.relu_(), None) if self.activation == "relu" else (ACTIVATIONS[self.activation](a), a)
        )

    def pull(
        self, z: Tensor, kept: object, w: Tensor, gw: Tensor, sums: tuple[Tensor, ...]
    ) -> Tensor:
        a = kept if isinstance(kept, Tensor) else w  # relu is on where its result is positive
        ga = SLOPES[self.activation](a).mul_(gw)
        sums[0].addmm_(ga, z.T)
        sums[1].add_(ga.sum(1, keepdim=True))
        return self.tables[0].T @ ga


class _Dense:
    """W2 a(W1 z + b1) + b2."""

    def __init__(
        self,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        activation: str,
    ) -> None:
        self.hidden = _Hidden(weight1, bias1, activation)
        self.width = len(weight2)
        self.extra = self.hidden.width + self.hidden.extra
        bias = weight2.new_zeros(self.width) if bias2 is None else bias2
        self.tables = (*self.hidden.tables, weight2, bias[:, None])

    def note(self, z: Tensor) -> Tensor | None:
        return None

    def tile(self, z: Tensor, note: Tensor | None) -> tuple[Tensor, object]:
        h, a = self.hidden.tile(z, None)
        return (self.tables[2] @ h).add_(self.tables[3]), (h, a)

    def pull(
        self, z: Tensor, kept: object, w: Tensor, gw: Tensor, sums: tuple[Tensor, ...]
    ) -> Tensor:
        assert isinstance(kept, tuple)
        h, a = kept
        sums[2].addmm_(gw, h.T)
        sums[3].add_(gw.sum(1, keepdim=True))
        return self.hidden.pull(z, a, h, self.tables[2].T @ gw, sums[:2])


class _Pieces:
    """A[p] + C[p] z: the same for relu and one number z; see :mod:`kanmeta.generate`."""

    extra = 4  # an index of 8 bytes, and room for one more of these

    def __init__(
        self, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
    ) -> None:
        self.width = len(weight2)
        self.bounds = kinks(weight1, bias1)
        slopes, starts = tables(weight1, bias1, weight2, bias2, self.bounds)
        self.tables = (slopes.T.contiguous(), starts.T.contiguous())

    def note(self, z: Tensor) -> Tensor | None:
        return (
            torch.bucketize(z[0], self.bounds).to(torch.uint8) if len(self.bounds) < 256 else None
        )

    def tile(self, z: Tensor, note: Tensor | None) -> tuple[Tensor, object]:
        piece = torch.bucketize(z[0], self.bounds) if note is None else note.long()
        piece = piece.expand(self.width, -1)
        slopes, starts = self.tables
        w = slopes.gather(1, piece).mul_(z)
        return w.add_(starts.gather(1, piece)), piece

    def pull(
        self, z: Tensor, kept: object, w: Tensor, gw: Tensor, sums: tuple[Tensor, ...]
    ) -> Tensor:
        assert isinstance(kept, Tensor)
        gz = self.tables[0].gather(1, kept).mul_(gw).sum(0, keepdim=True)
        sums[1].scatter_add_(1, kept, gw)
        sums[0].scatter_add_(1, kept, gw.mul_(z))
        return gz
