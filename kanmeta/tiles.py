"""The ways to write a layer as a product of its basis and coefficients of its edges.

y = sum_i sum_k B_k(x_i) w_k(z_io) with w(z) = W2 a(W1 z + b1) + b2:

=============  ==========================================  =======================================
way            basis                                       coefficients of an edge
=============  ==========================================  =======================================
dense          B_k                                         w_k(z): dim_w numbers
factored       sum_k W2[k,h] B_k                           a(W1 z + b1)_h: ``hidden`` numbers
linear         sum_k (W2 W1)[k,d] B_k, a the identity      z_d: ``dim_z`` numbers
=============  ==========================================  =======================================

In the last two, sum_i sum_k B_k(x_i) b2_k (+ W2 b1) is added to all outputs alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kanmeta import pieces
from kanmeta.blocks import Tensors
from kanmeta.coefficients import Coefficients, Tile
from kanmeta.generate import SLOPES, kinks, tables
from kanmeta.meta import ACTIVATIONS
from kanmeta.scratch import Scratch
from kanmeta.stream import Matrices

__all__ = ["Way", "dense", "pull_matrices", "way_of"]


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
    return Way(dense(matrices, activation))


def dense(matrices: Matrices, activation: str) -> Coefficients:
    """The cheapest way to generate all dim_w coefficients, differentiable in ``matrices``."""
    weight1, bias1, weight2, bias2 = matrices
    if activation == "relu" and weight1.shape[1] == 1:
        return _Pieces(weight1, bias1, weight2, bias2)
    return _Dense(weight1, bias1, weight2, bias2, activation)


class _Prompts(Coefficients):
    """The prompts themselves."""

    tables = ()
    extra = 0
    spent = True

    def __init__(self, dim_z: int) -> None:
        self.width = dim_z

    def tile(self, z: Tensor, note: Tensor | None, scratch: Scratch, whole: bool = True) -> Tile:
        return Tile(z, z)

    def pull(self, tile: Tile, gw: Tensor, sums: Tensors, scratch: Scratch) -> Tensor:
        return gw


class _Hidden(Coefficients):
    """a(W1 z + b1)."""

    def __init__(self, weight1: Tensor, bias1: Tensor | None, activation: str) -> None:
        self.width = len(weight1)
        self.extra = 0 if activation == "relu" else 2 * self.width
        self.spent = activation != "relu"
        self.activation = activation
        bias = weight1.new_zeros(self.width) if bias1 is None else bias1
        self.tables = (weight1, bias[:, None])

    def tile(self, z: Tensor, note: Tensor | None, scratch: Scratch, whole: bool = True) -> Tile:
        weight1, bias1 = self.tables
        a = scratch.take("hidden", self.width, z.shape[1])
        # A matrix product with one inner dimension is slow.
        product = torch.mul if len(z) == 1 else torch.mm
        product(weight1, z, out=a).add_(bias1)
        if self.activation == "relu":
            return Tile(z, a.relu_())
        return Tile(z, ACTIVATIONS[self.activation](a), a)

    def pull(self, tile: Tile, gw: Tensor, sums: Tensors, scratch: Scratch) -> Tensor:
        if self.activation == "relu":  # on where its result is positive
            ga: Tensor = torch.ops.aten.threshold_backward.grad_input(gw, tile.w, 0, grad_input=gw)
        else:
            assert isinstance(tile.kept, Tensor)
            ga = SLOPES[self.activation](tile.kept).mul_(gw)
        sums[0].addmm_(ga, tile.z.T)
        sums[1].add_(ga.sum(1, keepdim=True))
        return self.tables[0].T @ ga


_BLOCK_SHARE = 4  # one in so many of the numbers of scratch is for hidden units


class _Dense(Coefficients):
    """W2 a(W1 z + b1) + b2, hidden units of a block of edges at a time.

    They are the most numbers of an edge: tiles that had to hold them all would be small, and cost
    their basis again and again.
    """

    spent = True
    extra = 0

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
        self.block = 1
        bias = weight2.new_zeros(self.width) if bias2 is None else bias2
        self.tables = (*self.hidden.tables, weight2, bias[:, None])

    def tile(self, z: Tensor, note: Tensor | None, scratch: Scratch, whole: bool = True) -> Tile:
        w = scratch.take("w", self.width, z.shape[1])
        h: Tile | None = None
        alone = z.shape[1] <= self.block  # then its hidden units are kept for pulling
        if whole or alone:
            for part, target in zip(self._blocks(z), self._blocks(w), strict=True):
                h = self.hidden.tile(part, None, scratch)
                if whole:
                    torch.mm(self.tables[2], h.w, out=target).add_(self.tables[3])
        return Tile(z, w, h if alone else None)

    def pull(self, tile: Tile, gw: Tensor, sums: Tensors, scratch: Scratch) -> Tensor:
        gz = scratch.take("gz", *tile.z.shape)
        sums[3].add_(gw.sum(1, keepdim=True))
        for part, g, target in zip(*map(self._blocks, (tile.z, gw, gz)), strict=True):
            h = tile.kept if tile.kept is not None else self.hidden.tile(part, None, scratch)
            assert isinstance(h, Tile)
            sums[2].addmm_(g, h.w.T)
            gh = torch.mm(self.tables[2].T, g, out=scratch.take("gh", *h.w.shape))
            target.copy_(self.hidden.pull(h, gh, sums[:2], scratch))
        return gz

    def reserve(self, numbers: int) -> int:
        an_edge = 2 * self.hidden.width + self.hidden.extra + self.width
        self.block = max(1, numbers // _BLOCK_SHARE // an_edge)
        return numbers - min(numbers // 2, self.block * an_edge)

    def _blocks(self, t: Tensor) -> Tensors:
        return torch.split(t, self.block, 1)


_LANES = 4  # sums that take turns: adding to the one just written waits for the store


class _Pieces(Coefficients):
    """A[p] + C[p] z: the same for relu and one number z; see :mod:`kanmeta.generate`."""

    spent = True

    def __init__(
        self, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
    ) -> None:
        self.width = len(weight2)
        self.extra = self.width + 2  # slopes; an index of 8 bytes
        self.bounds = kinks(weight1, bias1)
        slopes, starts = tables(weight1, bias1, weight2, bias2, self.bounds)
        self.tables = (slopes.T.contiguous(), starts.T.contiguous())
        self.fixed = 2 * (1 + _LANES) * slopes.numel()

    def notes(self, z: Tensor, numbers: int) -> Tensor:
        return pieces.find(self.bounds, z[..., 0], numbers // 5)

    def tile(self, z: Tensor, note: Tensor | None, scratch: Scratch, whole: bool = True) -> Tile:
        assert note is not None
        edges = z.shape[1]
        piece = scratch.take("piece", *note.shape, dtype=torch.int64).copy_(note)
        slopes = scratch.take("slopes", self.width, edges)
        # Twice as fast as gather.
        torch.index_select(self.tables[0], 1, piece.view(-1), out=slopes)
        w = scratch.take("w", self.width, edges)
        if whole:
            torch.index_select(self.tables[1], 1, piece.view(-1), out=w).addcmul_(slopes, z)
        return Tile(z, w, (piece, slopes))

    def sums(self) -> Tensors:
        slopes = self.tables[0]
        return (slopes.new_zeros(2, self.width, slopes.shape[1] * _LANES),)

    def pull(self, tile: Tile, gw: Tensor, sums: Tensors, scratch: Scratch) -> Tensor:
        assert isinstance(tile.kept, tuple)
        piece, slopes = tile.kept
        edges = tile.z.shape[1]
        gz = torch.sum(slopes.mul_(gw), 0, keepdim=True, out=scratch.take("gz", 1, edges))
        lanes = torch.arange(piece.shape[1], device=piece.device).bitwise_and_(_LANES - 1)
        torch.add(lanes, piece, alpha=_LANES, out=piece)
        index = piece.view(-1).expand(self.width, edges)
        sums[0][1].scatter_add_(1, index, gw)
        sums[0][0].scatter_add_(1, index, gw.mul_(tile.z))
        return gz

    def total(self, sums: Tensors) -> Tensors:
        return sums[0].view(2, self.width, -1, _LANES).sum(3).unbind()


def pull_matrices(
    small: Sequence[Tensor], gradients: Sequence[Tensor], leaves: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of the meta-learner's matrices from those of what was made of them.

    Args:
        small: tables and projections, made of ``leaves`` with a graph.
        gradients: of these.
        leaves: W1, b1, W2, b2 and what follows them.

    Returns:
        One for each of ``leaves``; None where none is wanted.
    """
    pairs = [(t, g) for t, g in zip(small, gradients, strict=True) if t.requires_grad]
    targets = [s for s in leaves if s is not None and s.requires_grad]
    if not targets:
        return [None] * len(leaves)
    tensors, theirs = [t for t, _ in pairs], [g for _, g in pairs]
    found = iter(torch.autograd.grad(tensors, targets, theirs, allow_unused=True))
    return [next(found) if s is not None and s.requires_grad else None for s in leaves]
