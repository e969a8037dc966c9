"""The best prompt of each edge beside the other edges of its layer as they are.

Errors of edges that end in the same output may cancel, which a fit of one edge at a time cannot
use; and Adam carries a prompt a short way only, where the meta-learner's curve winds and a much
better place may lie on another turn. With the error e_no of a layer's sums in rows n, the edge from
i to o with the coefficients w goes to the w' = M(z'), z' on a grid over all prompts, that has

    min sum_n (e_no + (w' - w) . B(x_ni))^2 = min w'.G w' - 2 w'.(G w - sum_n B(x_ni) e_no) + const

with G = sum_n B(x_ni) B(x_ni)^T. That is coordinate descent: one input after the other, all outputs
of an input at once, as they do not depend on one another. For a convolution an input is a channel
at a position of the kernel. A norm or an activation after the sums is left out.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kanmeta import edge_functions
from kanmeta.binding import Binding
from kanmeta.distill_data import Batches
from kanmeta.edge_search import GRID, grid
from kanmeta.layer_metric import Call, first_tensor, watching
from kanmeta.linear_code import squared_error
from kanmeta.spec import LayerSpec

__all__ = ["descend", "search", "searchable"]

_ROWS = 1 << 14  # of each layer that are searched with
_NUMBERS = 1 << 26  # of inputs and outputs of all layers that are kept for it
_BATCHES = 256  # at most that are looked at, should a layer get few rows of each


@torch.no_grad()
def searchable(
    teacher: nn.Module, layers: Mapping[str, Binding], data: Batches
) -> dict[str, Binding]:
    """Layers whose prompts are few enough numbers for a grid, and whose basis is known."""
    with watching(teacher, list(layers)) as calls:
        teacher(*data.held_out[0])
    return {
        name: b
        for name, b in layers.items()
        if b.meta_learner.dim_z in GRID
        and b.meta_learner.dim_z < b.meta_learner.dim_w
        and b.spec.sizes.get("g", 1) == 1
        and edge_functions.are_known(b.layer, b.spec, b.map is not None, calls[name])
    }


@torch.no_grad()
def search(teacher: nn.Module, layers: Mapping[str, Binding], data: Batches) -> None:
    """One round for each layer, at the teacher's inputs to it; see :func:`descend`."""
    kept: dict[str, list[Call]] = {name: [] for name in layers}
    rows, numbers = dict.fromkeys(layers, 0), 0
    with watching(teacher, list(layers)) as calls:
        for batch in itertools.islice(data.once(), _BATCHES):
            teacher(*batch)
            for name, made in calls.items():
                for call in made if rows[name] < _ROWS else ():
                    part = _cut(call, layers[name].spec, _ROWS - rows[name])
                    kept[name].append(part)
                    rows[name] += edge_functions.rows(layers[name].spec, part)
                    numbers += part.args[0].numel() + part.output.numel()
                made.clear()
            if numbers >= _NUMBERS or min(rows.values()) >= _ROWS:
                break
    for name, binding in layers.items():
        if kept[name]:
            target = binding.spec.read(teacher.get_submodule(name))
            descend(binding, target, kept[name])


def _cut(call: Call, spec: LayerSpec, wanted: int) -> Call:
    """The first rows or images of a call, as many as are wanted."""
    each = max(1, edge_functions.rows(spec, call) // max(1, len(call.output)))
    number = math.ceil(wanted / each)
    return Call((call.args[0][:number],), {}, call.output[:number])


@torch.no_grad()
def descend(binding: Binding, target: Tensor, calls: Sequence[Call]) -> bool:
    """One round over all inputs of a layer, in place.

    The layer's basis is what its adapter says, which may be wrong of a subclass: so what counts at
    the end is the error of the layer's own outputs, and without progress prompts are as before.

    Args:
        binding: of a layer that is :func:`searchable`.
        target: the teacher's coefficients, ``(*edge_shape, dim_w)``.
        calls: of the teacher's layer, with what it returned.

    Returns:
        Whether the error became less.
    """
    layer, spec, meta = binding.layer, binding.spec, binding.meta_learner
    scale, offset = layer.coefficient_scale, layer.coefficient_offset
    assert isinstance(scale, Tensor)
    assert isinstance(offset, Tensor)
    before, prompts = _squared_error(binding, calls), binding.prompts.detach().clone()
    axis = spec.edge_axes.index("o")
    codes = _by_input(prompts, axis).clone()  # (inputs, out, dim_z)
    goal = _by_input(target, axis)
    error = torch.zeros((), device=codes.device, dtype=codes.dtype)
    for i, values in enumerate(edge_functions.functions(layer, spec, calls)):
        error = error + values.T @ (meta(codes[i], scale, offset) - goal[i]).T  # (rows, out)
    points = grid(codes.reshape(-1, meta.dim_z))
    decoded = meta(points, scale, offset)  # (points, dim_w)
    for i, values in enumerate(edge_functions.functions(layer, spec, calls)):  # (dim_w, rows)
        now = meta(codes[i], scale, offset)  # (out, dim_w)
        gram = values @ values.T
        linear = gram @ now.T - values @ error  # (dim_w, out)
        costs = ((decoded @ gram) * decoded).sum(1, keepdim=True) - 2 * decoded @ linear
        least, index = costs.min(0)
        better = least < ((now @ gram) * now).sum(1) - 2 * (now * linear.T).sum(1)
        error += values.T @ torch.where(better[:, None], decoded[index] - now, 0.0).T
        codes[i] = torch.where(better[:, None], points[index], codes[i])
    helped = False
    try:
        moved = binding.prompts.movedim(axis, -2)
        moved.copy_(codes.view(moved.shape))
        helped = _squared_error(binding, calls) < before
    finally:
        if not helped:  # or interrupted
            binding.prompts.copy_(prompts)
    return helped


def _by_input(t: Tensor, axis: int) -> Tensor:
    """``(*edge_shape, n)`` as ``(inputs, out, n)``; ``axis`` is that of the outputs."""
    return t.movedim(axis, -2).flatten(0, -3)


def _squared_error(binding: Binding, calls: Sequence[Call]) -> float:
    """Of the layer's outputs, from what the teacher's layer gave."""
    return sum(squared_error(first_tensor(binding.layer(*c.args)), c.output) for c in calls)
