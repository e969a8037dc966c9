"""Coefficients of all edges of some inputs, ``(dim_w, inputs * outputs)``, and what they come from.

Unlike :mod:`kanmeta.tiles`, always the coefficients themselves: that derivatives of any order are
made of, and they are many calls of a layer each, so a tile holds all outputs and is made once.
"""

from typing import Protocol

import torch
from torch import Tensor

from kanmeta.blocks import Tensors
from kanmeta.generate import SLOPES
from kanmeta.meta import ACTIVATIONS
from kanmeta.stream import Sources, leaves_of, matrices_of

__all__ = ["Edges", "Generated", "Given"]


class Edges(Protocol):
    """Coefficients W, ``(dim_w, in, out)``.

    Attributes:
        outputs: of the layer.
        width: dim_w.
    """

    outputs: int
    width: int

    def tile(self, columns: slice) -> Tensor:
        """Those of some inputs, ``(dim_w, inputs * outputs)``; overwritten by the next."""
        ...

    def pull(self, columns: slice, gw: Tensor) -> None:
        """Take the gradient of such a tile."""
        ...

    def gradients(self) -> list[Tensor | None]:
        """Gradients of what the coefficients come from."""
        ...


class Given(Edges):
    """Coefficients that exist."""

    def __init__(self, w: Tensor) -> None:
        """``w``: ``(dim_w, in, out)``."""
        self.w = w
        self.width, _, self.outputs = w.shape
        self.gradient: Tensor | None = None

    def tile(self, columns: slice) -> Tensor:
        """See :class:`Edges`."""
        return self.w[:, columns].contiguous().view(self.width, -1)

    def pull(self, columns: slice, gw: Tensor) -> None:
        """See :class:`Edges`."""
        if self.gradient is None:
            self.gradient = torch.zeros_like(self.w, memory_format=torch.contiguous_format)
        target = self.gradient[:, columns]
        target.copy_(gw.view(target.shape))

    def gradients(self) -> list[Tensor | None]:
        """See :class:`Edges`."""
        return [self.gradient]


class Generated(Edges):
    """W2 a(W1 z + b1) + b2, in blocks of edges.

    Args:
        sources: z, W1, b1, W2, b2.
        input_major: z is ``(in, out, dim_z)``, not ``(out, in, dim_z)``.
        activation: a.
        numbers: that the hidden activations of a block may take.
    """

    def __init__(self, sources: Sources, input_major: bool, activation: str, numbers: int) -> None:
        """Nothing is generated yet."""
        detached = leaves_of(sources, [False] * len(sources))
        z, (weight1, bias1, weight2, bias2) = detached[0], matrices_of(detached)
        assert z is not None
        self.sources, self.input_major = sources, input_major
        self.z = z if input_major else z.transpose(0, 1)
        self.outputs, self.width = self.z.shape[1], len(weight2)
        self.weight1, self.weight2 = weight1, weight2
        self.bias1 = None if bias1 is None else bias1[:, None]
        self.bias2 = None if bias2 is None else bias2[:, None]
        self.act, self.slope = ACTIVATIONS[activation], SLOPES[activation]
        self.step = max(256, numbers // (4 * len(weight1)))
        self.gz: Tensor | None = None
        self.sums: Tensors = ()

    def _prompts(self, columns: slice) -> Tensor:
        """``(dim_z, E)``."""
        return self.z[columns].permute(2, 0, 1).reshape(self.z.shape[2], -1)

    def _hidden(self, z: Tensor) -> Tensor:
        """W1 z + b1, ``(hidden, E)``."""
        # A matrix product with one inner dimension is slow.
        a = self.weight1 * z if len(z) == 1 else self.weight1 @ z
        return a if self.bias1 is None else a.add_(self.bias1)

    def tile(self, columns: slice) -> Tensor:
        """See :class:`Edges`."""
        z = self._prompts(columns)
        w = z.new_empty(self.width, z.shape[1])
        for start in range(0, z.shape[1], self.step):
            h = self.act(self._hidden(z[:, start : start + self.step]))
            torch.mm(self.weight2, h, out=w[:, start : start + self.step])
        return w if self.bias2 is None else w.add_(self.bias2)

    def pull(self, columns: slice, gw: Tensor) -> None:
        """See :class:`Edges`."""
        if self.gz is None:
            self.gz = torch.empty_like(self.z)
            self.sums = tuple(
                torch.zeros_like(t)
                for t in (self.weight1, self.weight1[:, 0], self.weight2, self.weight2[:, 0])
            )
        z, parts = self._prompts(columns), []
        for start in range(0, z.shape[1], self.step):
            some, g = z[:, start : start + self.step], gw[:, start : start + self.step]
            a = self._hidden(some)
            self.sums[2].addmm_(g, self.act(a).T)
            self.sums[3].add_(g.sum(1))
            ga = self.slope(a).mul_(self.weight2.T @ g)
            self.sums[0].addmm_(ga, some.T)
            self.sums[1].add_(ga.sum(1))
            parts.append(self.weight1.T @ ga)
        target = self.gz[columns].permute(2, 0, 1)
        target.copy_(torch.cat(parts, 1).view(target.shape))

    def gradients(self) -> list[Tensor | None]:
        """See :class:`Edges`."""
        if self.gz is None:
            return [None] * len(self.sources)
        found: list[Tensor | None] = [
            self.gz if self.input_major else self.gz.transpose(0, 1),
            *self.sums,
        ]
        found += [None] * (len(self.sources) - len(found))
        return [g if s is not None else None for g, s in zip(found, self.sources, strict=True)]
