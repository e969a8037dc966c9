"""Forward and backward of a convolution whose basis is known, tile by tile, without autograd.

A tile is some input channels of some images. Neither the basis, ``(N, dim_w * in, *space)``, nor
the weight, ``(out, dim_w * in, *kernel)``, ever exists whole: both are made for a tile, convolved
at once, and made again in backward. The arithmetic is torch's own convolution.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kanmeta import conv_cut
from kanmeta.blocks import Tensors, slices
from kanmeta.coefficients import Coefficients, Tile
from kanmeta.conv_cut import Geometry
from kanmeta.functions import Functions, Pull
from kanmeta.passes import Wanted
from kanmeta.scratch import Scratch

__all__ = ["Pass", "weight_parts"]


def weight_parts(w: Tensor, widths: Sequence[int], taps: int) -> list[Tensor]:
    """Views of coefficients as parts of the weight of a convolution.

    Args:
        w: ``(dim_w, out, in, T)``; ``dim_w`` is slot by slot, each with its functions and, where
            ``T`` is 1 but the kernel has more positions, for each function these.
        widths: number of functions of each slot.
        taps: positions of the kernel.

    Returns:
        For each slot ``(out, width, in, taps / T, T)``.
    """
    _, outputs, inputs, number = w.shape
    within = taps // number
    return [
        part.view(width, within, outputs, inputs, number).permute(2, 0, 3, 1, 4)
        for part, width in zip(torch.split(w, [k * within for k in widths]), widths, strict=True)
    ]


class Pass:
    """One pass over the tiles of a layer, or of one of its groups.

    Args:
        functions: the basis; its functions treat all channels alike.
        geometry: of the convolution.
        arguments: each ``(N, in, *space)``.
        z: prompts, ``(out, in, *kernel, dim_z)``, or ``(out, in, dim_z)`` with coefficients of all
            kernel positions in one prompt.
        coefficients: how they are generated.
        budget: bytes of scratch.
        wanted: None: a forward pass.
        notes: of the edges, from the forward pass.
    """

    def __init__(
        self,
        functions: Functions,
        geometry: Geometry,
        arguments: Tensors,
        z: Tensor,
        coefficients: Coefficients,
        budget: int,
        wanted: Wanted | None = None,
        notes: Tensor | None = None,
    ) -> None:
        """Choose the tiles."""
        self.functions, self.geometry, self.wanted = functions, geometry, wanted
        self.coefficients = coefficients
        # Channels and pixels of an image lie together, so that a tile of them is one long row.
        self.arguments = tuple(a.detach().contiguous() for a in arguments)
        self.shape = z.shape
        self.z = z.detach().reshape(*z.shape[:2], -1, z.shape[-1])
        self.outputs, self.inputs, self.taps, self.dim_z = self.z.shape
        self.images, _, *self.space = arguments[0].shape
        self.known = sum(functions.widths)
        self.out_space = geometry.outputs(self.space)
        self.scratch = Scratch(self.arguments[0])
        numbers = budget // z.element_size()
        self.sizes = conv_cut.cut(self._problem(), coefficients.reserve(numbers))
        self.notes = notes if wanted is not None else coefficients.notes(self.z, numbers)
        self.columns = slices(self.inputs, self.sizes.channels)
        self.rows = slices(self.images, self.sizes.images)

    @property
    def _slopes(self) -> bool:
        """Whether gradients flow back to the basis."""
        return self.wanted is not None and self.wanted.basis

    def _problem(self) -> conv_cut.Problem:
        back = self.wanted is not None
        positions = math.prod(self.space)
        weights = self.outputs * self.known * self.geometry.taps
        extra = sum(f.extra(self._slopes) for f in self.functions.each)
        outputs = self.outputs * math.prod(self.out_space)
        return conv_cut.Problem(
            images=self.images,
            channels=self.inputs,
            # Coefficients and the weight; its gradient, of all images and of a block of them.
            a_channel=(4 if back else 2) * weights
            + self.outputs * self.taps * self.coefficients.extra,
            # Values, what making them takes, their gradient.
            a_value=((2 if self._slopes else 1) * self.known + extra) * positions,
            an_image=0 if back else outputs,
            functions=self.known,
            weights=weights,
            outputs=outputs,
            products=weights * math.prod(self.out_space),
        )

    def _tile(self, columns: slice, whole: bool) -> tuple[Tile, Tensor]:
        """Coefficients of a tile, and as a weight ``(out, functions * in, *kernel)``."""
        part = self.z[:, columns].permute(3, 0, 1, 2)
        z = self.scratch.take("z", *part.shape).copy_(part).view(self.dim_z, -1)
        note = None if self.notes is None else self.notes[:, columns].flatten(1)
        tile = self.coefficients.tile(z, note, self.scratch, whole)
        shape = self.outputs, self.known, part.shape[2], self.geometry.taps
        weight = self.scratch.take("weight", *shape)
        if whole:
            for part, target in self._parts(tile.w, weight):
                target.copy_(part)
        return tile, weight.view(self.outputs, -1, *self.geometry.kernel)

    def _parts(self, w: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of coefficients ``(dim_w, E)`` and weight in which the same numbers lie alike."""
        edges = w.view(-1, self.outputs, weight.shape[2], self.taps)
        widths = self.functions.widths
        parts = weight_parts(edges, widths, self.geometry.taps)
        for part, target in zip(parts, torch.split(weight, [*widths], 1), strict=True):
            yield part, target.view(part.shape)

    def _evaluate(self, rows: slice, columns: slice) -> tuple[Tensor, list[Pull]]:
        """Values of all functions, ``(n, functions * in, *space)``, and what pulls back."""
        parts = [a[rows, columns].flatten(1) for a in self.arguments]
        images, inputs = parts[0].shape
        phi = self.scratch.take("phi", images, self.known, inputs)
        outs = torch.split(phi, list(self.functions.widths), 1)
        pulls = [
            # The functions are those of all channels: as if of one input in many rows.
            evaluate(parts[i], slice(0, 1), out, self.scratch.part(slot))[1]
            for slot, (evaluate, i, out) in enumerate(
                zip(self.functions.each, self.functions.arguments, outs, strict=True)
            )
        ]
        return phi.view(images, -1, *self.space), pulls

    def forward(self) -> Tensor:
        """Outputs ``(N, out, *space)``; the notes are to be kept for backward."""
        y = self.arguments[0].new_zeros(self.images, self.outputs, *self.out_space)
        for columns in self.columns:
            _, weight = self._tile(columns, True)
            for rows in self.rows:
                phi, _ = self._evaluate(rows, columns)
                y[rows] += torch.ops.aten.convolution(phi, weight, None, *self.geometry.options)
        return y

    def backward(self, gy: Tensor) -> tuple[list[Tensor | None], Tensor | None, list[Tensor]]:
        """Gradients of arguments, of z, and of the tables of the coefficients."""
        assert self.wanted is not None
        learn = self.wanted.coefficients
        gx = [
            torch.zeros_like(a) if g else None
            for a, g in zip(self.arguments, self.wanted.arguments, strict=True)
        ]
        sums = self.coefficients.sums()
        gz = torch.zeros_like(self.z) if learn else None
        gy = gy.contiguous()
        mask = [self._slopes, learn, False]
        for columns in self.columns:
            tile, weight = self._tile(columns, self._slopes)
            total: Tensor | None = None
            for rows in self.rows:
                phi, pulls = self._evaluate(rows, columns)
                g_phi, g_weight, _ = torch.ops.aten.convolution_backward(
                    gy[rows], phi, weight, None, *self.geometry.options, mask
                )
                if learn:
                    total = g_weight if total is None else total.add_(g_weight)
                if self._slopes:
                    self._pull(g_phi, pulls, gx, rows, columns)
                del g_phi, g_weight  # before the next are made
            if gz is not None and total is not None:
                self._learn(tile, total, sums, gz[:, columns])
        return gx, None if gz is None else gz.view(self.shape), list(self.coefficients.total(sums))

    def _pull(
        self,
        g_phi: Tensor,
        pulls: Sequence[Pull],
        gx: Sequence[Tensor | None],
        rows: slice,
        columns: slice,
    ) -> None:
        """From the gradient of the basis on to that of the arguments."""
        flat = g_phi.view(len(g_phi), self.known, -1)
        parts = torch.split(flat, list(self.functions.widths), 1)
        for i, pull, part in zip(self.functions.arguments, pulls, parts, strict=True):
            target, g = gx[i], pull(part)
            if target is not None:
                here = target[rows, columns]
                here += g.view(here.shape)

    def _learn(self, tile: Tile, g_weight: Tensor, sums: Tensors, target: Tensor) -> None:
        """From the gradient of the weight on to those of prompts and tables."""
        inputs = target.shape[1]
        weight = g_weight.view(self.outputs, self.known, inputs, self.geometry.taps)
        for target_part, part in self._parts(tile.w, weight):  # the coefficients have been used
            target_part.copy_(part)
        gz = self.coefficients.pull(tile, tile.w, sums, self.scratch)
        target.copy_(gz.view(self.dim_z, self.outputs, inputs, self.taps).permute(1, 2, 3, 0))
