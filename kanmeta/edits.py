"""Changes of coefficients that are exact on prompts: refitting to a new grid, moving edges.

A grid update maps the coefficients of each input linearly, w_new[o,i] = T_i w_old[o,i], and the
same T_i serves all outputs. So T is what a layer keeps, and w = T M(z) is exact for every z.
Moving edges (swap, prune) moves their prompts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kanmeta.binding import Binding
from kanmeta.errors import CoefficientWriteError
from kanmeta.layout import Rearrangement
from kanmeta.spec import ADDED, SlotSpec, tensor_at

__all__ = ["Moved", "moved_edges", "update_grid"]


@torch.inference_mode(False)
@torch.no_grad()
def update_grid(
    binding: Binding, method: str, outputs: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run a library's grid update on a converted layer, exactly.

    The library's own method runs on a probe: a layer with as many outputs as an edge has basis
    coefficients, of which output j has the j-th unit vector. What it makes of them are the columns
    of T. The grid that it chose becomes the layer's.

    Args:
        binding: of the layer.
        method: name of the library's method.
        outputs: name of the attribute that holds the number of outputs.
        args, kwargs: of the method.

    Raises:
        CoefficientWriteError: the refit is not finite; the layer is as it was.
    """
    layer, position = binding.layer, binding.spec.basis_position
    if position is None:  # they were frozen and are plain Parameters
        return getattr(super(type(layer), layer), method)(*args, **kwargs)
    slot = binding.spec.slots[position]
    probe = _probe(binding, slot, outputs)
    given = [*args, *kwargs.values(), *layer.buffers(), *layer.parameters()]
    result = getattr(probe, method)(*args, **kwargs)
    refitted = _probe_rearrangement(binding, slot).to_edges(tensor_at(probe, slot.path))
    # (*edges, k): output j of the probe is column j of T, so the axis o becomes the last.
    new_map = refitted.movedim(binding.spec.edge_axes.index("o"), -1)
    tensors = [*probe._parameters.items(), *probe._buffers.items()]
    plain = {n: t for n, t in tensors if t is not None and n not in binding.spec.paths}
    attributes = {n: v for n, v in vars(probe).items() if isinstance(v, Tensor)}
    if not _finite((new_map, *plain.values(), *attributes.values())):
        why = (
            "The samples do not determine the splines: pass more of them, such that differ"
            if _finite(given)
            else "The samples or the layer's numbers were not finite before: training has diverged"
        )
        raise CoefficientWriteError(
            f"{method} of {binding.name or '(root)'} ({type(layer).__name__}) gave numbers that "
            f"are not finite; the layer is as it was. {why}"
        )
    for name, tensor in plain.items():
        tensor_at(layer, name).data = tensor.detach().clone()  # samples may be inference tensors
    for name, tensor in attributes.items():
        setattr(layer, name, tensor.clone())
    binding.map = new_map.clone() if binding.map is None else new_map @ binding.map
    return result


def _finite(values: Iterable[object]) -> bool:
    tensors = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    return all(bool(t.isfinite().all()) for t in tensors)


def _probe_rearrangement(binding: Binding, slot: SlotSpec) -> Rearrangement:
    sizes = {**slot.tensor.sizes, "o": slot.tensor.width}
    return Rearrangement.of(slot.tensor.layout, binding.spec.edge_axes, sizes)


def _probe(binding: Binding, slot: SlotSpec, outputs: str) -> nn.Module:
    """An unconverted layer with the grid of this one and unit vectors as its coefficients."""
    layer, spec, width = binding.layer, binding.spec, slot.tensor.width
    probe: nn.Module = object.__new__(type(layer)._original)  # type: ignore[attr-defined]
    probe.__dict__ = {  # a grid in a plain attribute may be written in place
        k: v.clone() if isinstance(v, Tensor) else v
        for k, v in layer.__dict__.items()
        if k != "_kanmeta"
    }
    probe.__dict__["_buffers"] = {
        n: None if t is None else t.clone() for n, t in layer._buffers.items() if n not in ADDED
    }
    probe.__dict__["_parameters"] = {
        n: None if p is None else nn.Parameter(p.detach().clone(), requires_grad=False)
        for n, p in layer._parameters.items()
        if n not in ADDED
    }
    setattr(probe, outputs, width)
    edge_shape = [width if a == "o" else spec.sizes[a] for a in spec.edge_axes]
    unit = torch.eye(width).to(binding.prompts)
    unit = unit.view([width if a == "o" else 1 for a in spec.edge_axes] + [width])
    w = unit.expand(*edge_shape, width)
    values = {slot.path: _probe_rearrangement(binding, slot).from_edges(w)}
    if slot.scaler is not None and slot.scaled_by is not None:
        sizes = {**slot.scaler.sizes, "o": width}
        shape = Rearrangement.of(slot.scaler.layout, spec.edge_axes, sizes).shape
        values[slot.scaled_by] = unit.new_ones(shape)
    for name, value in values.items():
        probe.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return probe


class Moved(NamedTuple):
    """Where the edges of a layer come from.

    Attributes:
        source: number of the old edge (in the flattened edge axes) of each new one, ``edge_shape``.
        inputs: number of the old input of each new one, in the shape of the edge axes without
            ``o``; None if that is not one number per input.
    """

    source: Tensor
    inputs: Tensor | None


def moved_edges(new: Tensor, old: Tensor, output_axis: int) -> Moved | None:
    """Find the edges of ``old`` in ``new`` by their coefficients, to the last bit.

    Args:
        new: coefficients, ``(*edge_shape, dim_w)``.
        old: likewise; may have more edges.
        output_axis: position of the axis ``o`` among the edge axes.

    Returns:
        None if an edge of ``new`` is not one of ``old``. Of equal edges the one that keeps its
        place is preferred, then one from the input that its neighbour came from.
    """
    if new.numel() == 0:
        return None
    places: dict[bytes, list[int]] = {}
    for number, row in enumerate(_rows(old)):
        places.setdefault(row, []).append(number)
    shape, old_shape = new.shape[:-1], old.shape[:-1]
    old_inputs = _input_numbers(old_shape, output_axis).flatten().tolist()
    new_inputs = _input_numbers(shape, output_axis).flatten().tolist()
    same_place = _same_place(shape, old_shape).flatten().tolist()
    origin: dict[int, int] = {}  # new input -> old input
    source: list[int] = []
    for row, i, here in zip(_rows(new), new_inputs, same_place, strict=True):
        if row not in places:
            return None
        candidates = places[row]
        if len(candidates) > 1:
            candidates = [c for c in candidates if old_inputs[c] == origin.get(i)] or candidates
        best = here if here in candidates else candidates[0]
        origin.setdefault(i, old_inputs[best])
        source.append(best)
    consistent = all(old_inputs[s] == origin[i] for s, i in zip(source, new_inputs, strict=True))
    rest = [n for a, n in enumerate(shape) if a != output_axis]
    inputs = torch.tensor([origin[i] for i in sorted(origin)]).view(rest) if consistent else None
    return Moved(torch.tensor(source).view(shape), inputs)


def _same_place(shape: torch.Size, old_shape: torch.Size) -> Tensor:
    """Number of the old edge at the place of each new one; -1 where there was none."""
    numbers = torch.full(shape, -1)
    common = tuple(slice(min(a, b)) for a, b in zip(shape, old_shape, strict=True))
    numbers[common] = torch.arange(old_shape.numel()).view(old_shape)[common]
    return numbers


def _rows(w: Tensor) -> list[bytes]:
    numbers = w.detach().cpu().reshape(-1, w.shape[-1]).contiguous().view(torch.uint8).numpy()
    return [row.tobytes() for row in numbers]


def _input_numbers(shape: torch.Size, output_axis: int) -> Tensor:
    """Number of the input (all edge axes but ``o``, flattened) of each edge."""
    rest = [1 if a == output_axis else n for a, n in enumerate(shape)]
    return torch.arange(torch.Size(rest).numel()).view(rest).expand(shape)
