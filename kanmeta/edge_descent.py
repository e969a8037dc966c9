"""The best prompt of each edge beside the other edges of its layer as they are.

Errors of edges that end in the same output may cancel, which a fit of one edge at a time cannot
use; and Adam carries a prompt a short way only, where the meta-learner's curve winds and a much
better place may lie on another turn. With the error e_no of a layer's output in rows n, the edge
from i to o with the coefficients w goes to the w' = M(z'), z' on a grid over all prompts, that has

    min sum_n (e_no + (w' - w) . B(x_ni))^2 = min w'.G w' - 2 w'.(G w - sum_n B(x_ni) e_no) + const

with G = sum_n B(x_ni) B(x_ni)^T. That is coordinate descent: one input after the other, all outputs
of an input at once, as they do not depend on one another.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from kanmeta import fast
from kanmeta.basis import Basis
from kanmeta.binding import Binding
from kanmeta.distill_data import Batches
from kanmeta.edge_search import GRID, grid
from kanmeta.layer_metric import Call, first_tensor, watching

__all__ = ["descend", "search", "searchable"]

_COLUMNS = 16  # inputs whose functions are evaluated at once
_ROWS = 1 << 14  # of inputs to search with, for layers of up to 1,000 inputs or so
_NUMBERS = 1 << 26  # inputs and outputs of all layers that are kept for it


@torch.no_grad()
def searchable(
    teacher: nn.Module, layers: Mapping[str, Binding], data: Batches
) -> dict[str, Binding]:
    """Layers whose prompts are few enough numbers for a grid, and whose basis is known."""
    with watching(teacher, list(layers)) as calls:
        teacher(*data.held_out[0])
    return {name: b for name, b in layers.items() if _fits(b, calls[name])}


def _fits(binding: Binding, calls: Sequence[Call]) -> bool:
    spec, meta, basis = binding.spec, binding.meta_learner, binding.spec.basis
    return (
        meta.dim_z in GRID
        and meta.dim_z < meta.dim_w
        and isinstance(basis, Basis)
        and basis.finish is None
        and bool(calls)
        and all(fast.fits(spec, binding.map is not None, c.args) and not c.kwargs for c in calls)
        and all(basis.branches[s.path].functions(binding.layer) is not None for s in spec.slots)
    )


@torch.no_grad()
def search(teacher: nn.Module, layers: Mapping[str, Binding], data: Batches) -> None:
    """One round for each layer, at the teacher's inputs to it; see :func:`descend`."""
    width = sum(b.spec.sizes["i"] + b.spec.sizes["o"] for b in layers.values())
    missing = min(_ROWS, _NUMBERS // width)
    with watching(teacher, list(layers)) as calls:
        for batch in data.once():
            teacher(*batch)
            missing -= max((_rows(made[-1]) for made in calls.values() if made), default=1)
            if missing <= 0:
                break
    for name, binding in layers.items():
        if calls[name]:
            descend(binding, calls[name])


@torch.no_grad()
def descend(binding: Binding, calls: Sequence[Call]) -> bool:
    """One round over all inputs of a layer, in place.

    The layer's basis is what its adapter says, which may be wrong of a subclass: so what counts at
    the end is the error of the layer itself, and without progress prompts are as before.

    Args:
        binding: of a layer that is :func:`searchable`.
        calls: of the teacher's layer, with what it returned.

    Returns:
        Whether the error became less.
    """
    layer, spec, meta = binding.layer, binding.spec, binding.meta_learner
    scale, offset = layer.coefficient_scale, layer.coefficient_offset
    assert isinstance(scale, Tensor)
    assert isinstance(offset, Tensor)
    error = _error(binding, calls)
    before, kept = float(error.square().sum()), binding.prompts.detach().clone()
    codes = binding.prompts.movedim(spec.edge_axes.index("i"), 0)  # (in, out, dim_z), a view
    points = grid(codes.reshape(-1, meta.dim_z))
    decoded = meta(points, scale, offset)  # (points, dim_w)
    for i, values in enumerate(_functions(binding, calls)):  # (dim_w, rows)
        now = meta(codes[i], scale, offset)  # (out, dim_w)
        gram = values @ values.T
        linear = gram @ now.T - values @ error  # (dim_w, out)
        costs = ((decoded @ gram) * decoded).sum(1, keepdim=True) - 2 * decoded @ linear
        least, index = costs.min(0)
        better = least < ((now @ gram) * now).sum(1) - 2 * (now * linear.T).sum(1)
        new = torch.where(better[:, None], decoded[index], now)
        error.addmm_(values.T, (new - now).T)
        codes[i] = torch.where(better[:, None], points[index], codes[i])
    if float(_error(binding, calls).square().sum()) < before:
        return True
    binding.prompts.copy_(kept)
    return False


def _rows(call: Call) -> int:
    return call.output.numel() // call.output.shape[-1]


def _error(binding: Binding, calls: Sequence[Call]) -> Tensor:
    """Output less what the teacher's layer gave, ``(rows, out)``."""
    parts = [first_tensor(binding.layer(*call.args)) - call.output for call in calls]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _functions(binding: Binding, calls: Sequence[Call]) -> Iterator[Tensor]:
    """Values of the basis of one input after the other, ``(dim_w, rows)``."""
    layer, spec = binding.layer, binding.spec
    assert isinstance(spec.basis, Basis)
    x = torch.cat([call.args[0].reshape(-1, call.args[0].shape[-1]) for call in calls])
    branches = [spec.basis.branches[slot.path] for slot in spec.slots]
    known = [branch.functions(layer) for branch in branches]
    arguments = {b.argument: b.argument(layer, x) for b in branches}
    for start in range(0, x.shape[1], _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, x.shape[1]))
        parts = [
            f.evaluate(arguments[b.argument][:, columns].contiguous(), columns)[0]
            for b, f in zip(branches, known, strict=True)
            if f is not None
        ]
        yield from torch.cat(parts, dim=1).permute(2, 1, 0).contiguous()
