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
from kanmeta.pieces import Finder
from kanmeta.scratch import Scratch

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

    def note(self, z: Tensor, scratch: Scratch | None = None) -> Tensor | None:
        """What is worth keeping of a tile between forward and backward, a byte an edge."""
        ...

    def tile(
        self, z: Tensor, note: Tensor | None, scratch: Scratch | None = None, whole: bool = True
    ) -> tuple[Tensor, object]:
        """``(dim_z, E)`` to ``(width, E)``, and what :meth:`pull` needs.

        Args:
            z: prompts of the tile.
            note: of the tile.
            scratch: buffers, which both results may lie in; None: allocate them.
            whole: whether the coefficients are used; else they may be left uninitialised.
        """
        ...

    def pull(
        self,
        z: Tensor,
        kept: object,
        w: Tensor,
        gw: Tensor,
        sums: tuple[Tensor, ...],
        scratch: Scratch | None = None,
    ) -> Tensor:
        """Gradient of z; adds that of the tables to ``sums``. Overwrites what it is given."""
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

    def note(self, z: Tensor, scratch: Scratch | None = None) -> Tensor | None:
        return None

    def tile(
        self, z: Tensor, note: Tensor | None, scratch: Scratch | None = None, whole: bool = True
    ) -> tuple[Tensor, object]:
        return z, None

    def pull(
        self,
        z: Tensor,
        kept: object,
        w: Tensor,
        gw: Tensor,
        sums: tuple[Tensor, ...],
        scratch: Scratch | None = None,
    ) -> Tensor:
        return gw


class _Hidden:
    """a(W1 z + b1)."""

    def __init__(self, weight1: Tensor, bias1: Tensor | None, activation: str) -> None:
        self.width = len(weight1)
        self.extra = 0 if activation in ("relu", "identity") else 2 * self.width
        self.activation = activation
        bias = weight1.new_zeros(self.width) if bias1 is None else bias1
        self.tables = (weight1, bias[:, None])

    def note(self, z: Tensor, scratch: Scratch | None = None) -> Tensor | None:
        return None

    def tile(
        self, z: Tensor, note: Tensor | None, scratch: Scratch | None = None, whole: bool = True
    ) -> tuple[Tensor, object]:
        weight1, bias1 = self.tables
        a = (scratch or Scratch(z)).take("hidden", self.width, z.shape[1])
        # A matrix product with one inner dimension is slow.
        product = torch.mul if len(z) == 1 else torch.mm
        product(weight1, z, out=a).add_(bias1)
        if self.activation == "relu":
            return a.relu_(), None
        return ACTIVATIONS[self.activation](a), a

    def pull(
        self,
        z: Tensor,
        kept: object,
        w: Tensor,
        gw: Tensor,
        sums: tuple[Tensor, ...],
        scratch: Scratch | None = None,
    ) -> Tensor:
        if self.activation == "relu":  # on where its result is positive
            ga: Tensor = torch.ops.aten.threshold_backward.grad_input(gw, w, 0, grad_input=gw)
        else:
            assert isinstance(kept, Tensor)
            ga = SLOPES[self.activation](kept).mul_(gw)
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
        self.extra = 2 * self.hidden.width + self.hidden.extra
        bias = weight2.new_zeros(self.width) if bias2 is None else bias2
        self.tables = (*self.hidden.tables, weight2, bias[:, None])

    def note(self, z: Tensor, scratch: Scratch | None = None) -> Tensor | None:
        return None

    def tile(
        self, z: Tensor, note: Tensor | None, scratch: Scratch | None = None, whole: bool = True
    ) -> tuple[Tensor, object]:
        buffers = scratch or Scratch(z)
        h, a = self.hidden.tile(z, None, buffers)
        w = buffers.take("w", self.width, z.shape[1])
        if whole:
            torch.mm(self.tables[2], h, out=w).add_(self.tables[3])
        return w, (h, a)

    def pull(
        self,
        z: Tensor,
        kept: object,
        w: Tensor,
        gw: Tensor,
        sums: tuple[Tensor, ...],
        scratch: Scratch | None = None,
    ) -> Tensor:
        assert isinstance(kept, tuple)
        h, a = kept
        sums[2].addmm_(gw, h.T)
        sums[3].add_(gw.sum(1, keepdim=True))
        gh = (scratch or Scratch(z)).take("gh", *h.shape)
        return self.hidden.pull(z, a, h, torch.mm(self.tables[2].T, gw, out=gh), sums[:2])


_LANES = 8  # sums that take turns: adding to the one just written waits for the store


class _Pieces:
    """A[p] + C[p] z: the same for relu and one number z; see :mod:`kanmeta.generate`."""

    def __init__(
        self, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
    ) -> None:
        self.width = len(weight2)
        self.extra = 4 + 2 * 2  # a prompt, its gradient, room for notes; two indices of 8 bytes
        bounds = kinks(weight1, bias1)
        self.finder = Finder(bounds)
        slopes, starts = tables(weight1, bias1, weight2, bias2, bounds)
        self.tables = (slopes.T.contiguous(), starts.T.contiguous())

    def note(self, z: Tensor, scratch: Scratch | None = None) -> Tensor | None:
        if len(self.finder.bounds) > 255:
            return None
        return self.finder.find(z[0], scratch or Scratch(z)).to(torch.uint8)

    def tile(
        self, z: Tensor, note: Tensor | None, scratch: Scratch | None = None, whole: bool = True
    ) -> tuple[Tensor, object]:
        buffers, edges = scratch or Scratch(z), z.shape[1]
        if note is None:
            piece = self.finder.find(z[0], buffers)
        else:
            piece = buffers.take("piece", edges, dtype=torch.int64).copy_(note)
        index = piece.expand(self.width, edges)
        slopes, starts = self.tables
        here = buffers.take("slopes", self.width, edges)
        torch.gather(slopes, 1, index, out=here)
        w = buffers.take("w", self.width, edges)
        if whole:
            torch.gather(starts, 1, index, out=w).addcmul_(here, z)
        return w, (piece, here)

    def pull(
        self,
        z: Tensor,
        kept: object,
        w: Tensor,
        gw: Tensor,
        sums: tuple[Tensor, ...],
        scratch: Scratch | None = None,
    ) -> Tensor:
        assert isinstance(kept, tuple)
        piece, slopes = kept
        buffers, edges = scratch or Scratch(z), z.shape[1]
        gz: Tensor = slopes.mul_(gw).sum(0, keepdim=True)
        lanes = buffers.take("lanes", edges, dtype=torch.int64)
        torch.arange(edges, out=lanes).bitwise_and_(_LANES - 1)
        index = lanes.add_(piece, alpha=_LANES).expand(self.width, edges)
        pieces = sums[0].shape[1]
        parts = buffers.take("parts", 2, self.width, pieces * _LANES).zero_()
        parts[1].scatter_add_(1, index, gw)
        parts[0].scatter_add_(1, index, gw.mul_(z))
        total = parts.view(2, self.width, pieces, _LANES).sum(3)
        sums[0].add_(total[0])
        sums[1].add_(total[1])
        return gz
