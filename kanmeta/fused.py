"""A linear layer whose basis is known, in tiles of rows, inputs and outputs.

Neither the basis, ``(N, in, dim_w)``, nor the coefficients, ``(out, in, dim_w)``, ever exist whole:
both are made for a tile, contracted at once, and made again in backward. Alive between forward and
backward: the inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kanmeta import blocks
from kanmeta.basis import Evaluate, Pull
from kanmeta.blocks import Cut, Tensors
from kanmeta.stream import Sources
from kanmeta.tiles import Way, way_of

__all__ = ["Layer", "apply", "plain"]


@dataclass(frozen=True)
class Layer:
    """What is known of a layer.

    Attributes:
        functions: of each slot in turn.
        widths: number of functions of each slot.
        arguments: for each slot, which of the tensors given to :func:`apply` it takes.
        input_major: the prompts are ``(in, out, dim_z)``, not ``(out, in, dim_z)``.
        activation: of the meta-learner.
        generate: sources -> coefficients ``(*edges, dim_w)``, differentiable.
        scratch: bytes.
    """

    functions: Sequence[Evaluate]
    widths: Sequence[int]
    arguments: Sequence[int]
    input_major: bool
    activation: str
    generate: Callable[[Sources], Tensor]
    scratch: int

    def tiles(self, rows: int, inputs: int, outputs: int, way: Way, size: int) -> "_Tiles":
        """Sizes of tiles that fit in ``scratch``."""
        numbers, rows = self.scratch // size, max(rows, 1)
        width, extra = way.coefficients.width, way.coefficients.extra
        known = sum(self.widths)
        # Alive in backward: coefficients, their gradient, one temporary; values of the basis,
        # two temporaries of the recursion, the gradient (and both projected).
        an_edge = 3 * width + extra
        a_value = 4 * known + (2 * width if way.project is not None else 0)
        # Narrow tiles waste time on calls: rather fewer rows, or outputs, whichever takes more.
        outs, columns = outputs, 0
        while True:
            columns = numbers // (rows * a_value + outs * an_edge)
            if columns >= min(inputs, 16) or max(rows, outs) <= 64:
                break
            if outs <= 64 or (rows > 64 and rows * a_value >= outs * an_edge):
                rows = (rows + 1) // 2
            else:
                outs = (outs + 1) // 2
        return _Tiles(rows, max(1, min(columns, inputs)), outs)


@dataclass(frozen=True)
class _Tiles:
    rows: int
    columns: int
    outputs: int


def _slices(number: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, number)) for start in range(0, number, step))


def apply(layer: Layer, arguments: Tensors, sources: Sources) -> Tensor:
    """Sum over inputs and functions, ``(N, in)`` to ``(N, out)``.

    Args:
        layer: the layer.
        arguments: inputs of the functions, each ``(N, in)``.
        sources: z, W1, b1, W2, b2; see :meth:`kanmeta.execution.Binding.sources`.
    """
    y = _Fused.apply(layer, len(arguments), *arguments, *sources)
    assert isinstance(y, Tensor)
    return y


def plain(layer: Layer, arguments: Tensors, w: Tensor) -> Tensor:
    """The same by operations that autograd differentiates any number of times."""
    every = slice(0, arguments[0].shape[1])
    values = [
        evaluate(arguments[i], every)[0]
        for evaluate, i in zip(layer.functions, layer.arguments, strict=True)
    ]
    edges = "io" if layer.input_major else "oi"
    return torch.einsum(f"nki,{edges}k->no", torch.cat(values, 1), w)


class _Pass:
    """One pass over the tiles of a layer."""

    def __init__(self, layer: Layer, arguments: Tensors, sources: Sources, way: Way) -> None:
        z = sources[0]
        assert z is not None
        self.layer, self.arguments, self.way = layer, arguments, way
        self.shape = z.shape
        self.z = z.detach() if layer.input_major else z.detach().transpose(0, 1)
        inputs, outputs, _ = self.z.shape
        self.known = sum(layer.widths)
        self.width = way.coefficients.width
        rows = arguments[0].shape[0]
        self.tiles = layer.tiles(rows, inputs, outputs, way, z.element_size())
        self.columns = list(_slices(inputs, self.tiles.columns))
        self.outputs = list(_slices(outputs, self.tiles.outputs))
        self.rows = list(_slices(rows, self.tiles.rows))

    def prompts(self, columns: slice, outs: slice) -> Tensor:
        """Prompts of a tile, ``(dim_z, E)``."""
        return self.z[columns, outs].permute(2, 0, 1).reshape(self.z.shape[2], -1).contiguous()

    def values(self, rows: slice, columns: slice) -> tuple[Tensor, list[tuple[int, int, Pull]]]:
        """Values of all functions, ``(rows, dim_w, inputs)``; (argument, width, pull) of each."""
        number, length = rows.stop - rows.start, columns.stop - columns.start
        phi = self.arguments[0].new_empty(number, self.known, length)
        pulls, start = [], 0
        for evaluate, width, i in zip(
            self.layer.functions, self.layer.widths, self.layer.arguments, strict=True
        ):
            part = phi[:, start : start + width]
            pulls.append((i, width, evaluate(self.arguments[i][rows, columns], columns, part)[1]))
            start += width
        return phi, pulls

    def projected(self, phi: Tensor) -> Tensor:
        """What coefficients are multiplied with, ``(rows, width * inputs)``."""
        psi = phi if self.way.project is None else self.way.project.detach() @ phi
        return psi.flatten(1)

    def forward(self, keep: bool) -> tuple[Tensor, list[Tensor | None]]:
        """Outputs, and what is kept of each tile for backward."""
        z, way = self.z, self.way
        notes: list[Tensor | None] = []
        y = self.arguments[0].new_zeros(self.arguments[0].shape[0], z.shape[1])
        for columns in self.columns:
            psi: Tensor | None = None
            for outs in self.outputs:
                tile = self.prompts(columns, outs)
                note = way.coefficients.note(tile)
                notes.append(note if keep else None)
                w = way.coefficients.tile(tile, note)[0].view(-1, outs.stop - outs.start)
                for rows in self.rows:
                    if psi is None or len(self.rows) > 1:
                        phi, _ = self.values(rows, columns)
                        psi = self.projected(phi)
                        if way.shift is not None and outs.start == 0:
                            common = torch.einsum("nki,k->n", phi, way.shift.detach())
                            y[rows] += common.unsqueeze(1)
                        del phi
                    y[rows, outs].addmm_(psi, w)
        return y, notes

    def backward(
        self, gy: Tensor, notes: Sequence[Tensor | None], wanted: Sequence[bool], learn: bool
    ) -> tuple[list[Tensor | None], Tensor | None, list[Tensor]]:
        """Gradients of arguments, of z, and of the tables (and projection and shift) of the way."""
        way, coefficients = self.way, self.way.coefficients
        gx = [
            torch.zeros_like(a) if g else None for a, g in zip(self.arguments, wanted, strict=True)
        ]
        gradient = (
            torch.empty(self.shape, dtype=self.z.dtype, device=self.z.device) if learn else None
        )
        gz = gradient if gradient is None or self.layer.input_major else gradient.transpose(0, 1)
        noted = iter(notes)
        sums = tuple(torch.zeros_like(t) for t in coefficients.tables)
        g_project = None if way.project is None else torch.zeros_like(way.project)
        g_shift = None if way.shift is None else torch.zeros_like(way.shift)
        for columns in self.columns:
            length = columns.stop - columns.start
            whole = len(self.rows) == 1
            phi, pulls = self.values(self.rows[0], columns) if whole and self.rows else (None, [])
            psi = None if phi is None else self.projected(phi)
            gpsi = None if psi is None else torch.zeros_like(psi)
            for outs in self.outputs:
                tile = self.prompts(columns, outs)
                w, kept = coefficients.tile(tile, next(noted))
                matrix = w.view(-1, outs.stop - outs.start)
                gw = torch.zeros_like(matrix) if learn else None
                for rows in self.rows:
                    if not whole:
                        phi, pulls = self.values(rows, columns)
                        psi = self.projected(phi)
                        gpsi = torch.zeros_like(psi)
                    assert phi is not None
                    assert psi is not None
                    assert gpsi is not None
                    g = gy[rows, outs]
                    if gw is not None:
                        gw.addmm_(psi.T, g)
                    if any(wanted) or g_project is not None:
                        gpsi.addmm_(g, matrix.T)
                    if not whole:
                        self._pull(rows, columns, phi, pulls, gpsi, gy, gx, g_project, g_shift)
                if gz is not None and gw is not None:
                    edges = coefficients.pull(tile, kept, w, gw.view_as(w), sums)
                    gz[columns, outs] = edges.view(-1, length, outs.stop - outs.start).permute(
                        1, 2, 0
                    )
            if whole and phi is not None and gpsi is not None:
                self._pull(self.rows[0], columns, phi, pulls, gpsi, gy, gx, g_project, g_shift)
        return gx, gradient, [*sums, *(g for g in (g_project, g_shift) if g is not None)]

    def _pull(
        self,
        rows: slice,
        columns: slice,
        phi: Tensor,
        pulls: Sequence[tuple[int, int, Pull]],
        gpsi: Tensor,
        gy: Tensor,
        gx: Sequence[Tensor | None],
        g_project: Tensor | None,
        g_shift: Tensor | None,
    ) -> None:
        """From the gradient of what coefficients are multiplied with to that of the arguments."""
        g = gpsi.view(len(phi), self.width, -1)
        if self.way.project is not None and g_project is not None:
            g_project += torch.einsum("nji,nki->jk", g, phi)
            g = self.way.project.detach().T @ g
        if self.way.shift is not None and g_shift is not None:
            total = gy[rows].sum(1)
            g_shift += torch.einsum("nki,n->k", phi, total)
            g = g + total[:, None, None] * self.way.shift.detach()[:, None]
        start = 0
        for i, width, pull in pulls:
            target = gx[i]
            if target is not None:
                target[rows, columns] += pull(g[:, start : start + width])
            start += width


class _Fused(torch.autograd.Function):
    """See :func:`apply`."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, number: int, *tensors: Tensor | None) -> Tensor:
        ctx.layer, ctx.number = layer, number
        ctx.save_for_backward(*tensors)
        arguments, sources = blocks.present(tensors[:number]), tensors[number:]
        way = way_of(_matrices(sources), layer.activation)
        y, ctx.notes = _Pass(layer, arguments, sources, way).forward(any(ctx.needs_input_grad))
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        layer, number, wanted = ctx.layer, ctx.number, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # to be read once: checkpointing makes them anew
        arguments, sources = blocks.present(saved[:number]), saved[number:]
        each = layer, arguments, sources, gy, wanted[:number], wanted[number:]
        found = _differentiable(*each) if torch.is_grad_enabled() else _fast(*each, ctx.notes)
        return (None, None, *found)


def _matrices(sources: Sources) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    _, weight1, bias1, weight2, bias2 = sources[:5]
    assert weight1 is not None
    assert weight2 is not None
    return weight1, bias1, weight2, bias2


def _fast(
    layer: Layer,
    arguments: Tensors,
    sources: Sources,
    gy: Tensor,
    wanted: Sequence[bool],
    learned: Sequence[bool],
    notes: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of arguments and sources by tiles."""
    leaves = tuple(
        None if s is None else s.detach().requires_grad_(g)
        for s, g in zip(sources, learned, strict=True)
    )
    with torch.enable_grad():  # of small matrices only
        way = way_of(_matrices(leaves), layer.activation)
    small = [*way.coefficients.tables, *(t for t in (way.project, way.shift) if t is not None)]
    with torch.no_grad():
        gx, gz, sums = _Pass(layer, arguments, sources, way).backward(
            gy, notes, wanted, any(learned)
        )
    pairs = [(t, g) for t, g in zip(small, sums, strict=True) if t.requires_grad]
    targets = [s for s in leaves[1:] if s is not None and s.requires_grad]
    found = iter(
        torch.autograd.grad(
            [t for t, _ in pairs], targets, [g for _, g in pairs], allow_unused=True
        )
        if targets
        else ()
    )
    rest = [next(found) if s is not None and s.requires_grad else None for s in leaves[1:]]
    return [*gx, gz if learned[0] else None, *rest]


def _differentiable(
    layer: Layer,
    arguments: Tensors,
    sources: Sources,
    gy: Tensor,
    wanted: Sequence[bool],
    learned: Sequence[bool],
) -> list[Tensor | None]:
    """The same with a graph, for derivatives of the derivative: in blocks of rows."""

    def function(rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
        return (plain(layer, rows, shared[0]),), ()

    w = layer.generate(sources)
    numbers = sum(a.shape[1] for a in arguments) * 10 * max(layer.widths)
    step = max(1, layer.scratch // (numbers * w.element_size()))
    found = blocks.pull_back(
        function, Cut(0, step), (arguments, (w,)), ((gy,), ()), (wanted, (any(learned),))
    )
    rest: list[Tensor | None] = [None] * len(sources)
    gw = found[-1]
    if gw is not None:
        targets = [s for s, g in zip(sources, learned, strict=True) if g and s is not None]
        pulled = iter(torch.autograd.grad(w, targets, gw, create_graph=True))
        rest = [next(pulled) if g else None for g in learned]
    return [*found[:-1], *rest]
