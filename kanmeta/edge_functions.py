"""Values of a layer's basis, one input of its sum after the other, as its adapter knows them.

A linear layer sums over inputs, a convolution over channels and positions of its kernel.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kanmeta import conv_fast, fast
from kanmeta.basis import Known
from kanmeta.conv_basis import Convolution
from kanmeta.functions import Evaluate
from kanmeta.layer_metric import Call, usable
from kanmeta.spec import LayerSpec

__all__ = ["are_known", "functions", "gram", "rows"]

_Before = Callable[..., Tensor]  # ``argument`` of a branch: what happens before the functions

_COLUMNS = 16  # inputs whose functions are evaluated at once
_IMAGES = 16  # or rows, for the Gram matrix


def are_known(layer: nn.Module, spec: LayerSpec, mapped: bool, calls: Sequence[Call]) -> bool:
    """Whether the functions of all slots are known, and the calls are what the basis describes.

    For a convolution, if prompts belong to single taps.
    """
    basis = spec.basis
    if basis is None or not calls or any(call.kwargs or len(call.args) != 1 for call in calls):
        return False
    if not isinstance(basis, Convolution):
        fits = all(fast.fits(spec, mapped, call.args) for call in calls)
    else:
        fits = spec.edge == "tap"
        fits = fits and all(conv_fast.fits(layer, spec, mapped, call.args) for call in calls)
        fits = fits and conv_fast.geometry_of(_like(layer, basis), spec.kernel) is not None
    return fits and all(
        basis.branches[slot.path].functions(layer) is not None for slot in spec.slots
    )


@torch.no_grad()
def gram(layer: nn.Module, spec: LayerSpec, calls: Sequence[Call]) -> Tensor | None:
    """As :func:`kanmeta.layer_metric.gram`, also where a norm or an activation follows the sums.

    Zeros around an image are left out.
    """
    if not are_known(layer, spec, False, calls):
        return None
    total = torch.zeros(spec.dim_w, spec.dim_w, dtype=torch.float64)
    slots = _slots(layer, spec)
    columns = slice(0, 1 if spec.kernel else spec.sizes["i"])  # channels have the same functions
    for x in (part for call in calls for part in call.args[0].split(_IMAGES)):
        if isinstance(spec.basis, Convolution):
            groups = enumerate(x.split(spec.sizes["i"], 1))
            found = [_arguments(slots, layer, group, part) for group, part in groups]
        else:
            found = [_arguments(slots, layer, x.reshape(-1, x.shape[-1]))]
        for given in found:
            parts = [e(given[before].flatten(1), columns)[0] for before, e in slots]
            values = torch.cat(parts, 1)  # (rows, dim_w, inputs), or pixels for inputs
            flat = values.double().transpose(0, 1).flatten(1)
            total = total.to(flat.device) + flat @ flat.T
    return usable(total)


def _slots(layer: nn.Module, spec: LayerSpec) -> list[tuple[_Before, Evaluate]]:
    """For each slot what comes before its functions, and these."""
    assert spec.basis is not None
    found: list[tuple[_Before, Evaluate]] = []
    for slot in spec.slots:
        branch = spec.basis.branches[slot.path]
        known = branch.functions(layer)
        assert known is not None
        found.append((branch.argument, known.evaluate if isinstance(known, Known) else known))
    return found


def _arguments(
    slots: Sequence[tuple[_Before, Evaluate]], layer: nn.Module, *given: Any
) -> dict[_Before, Tensor]:
    """What the functions take; slots that share it have it computed once."""
    return {before: before(layer, *given) for before in dict.fromkeys(b for b, _ in slots)}


def rows(spec: LayerSpec, call: Call) -> int:
    """Outputs of a call for each output of the layer: rows, or images times pixels."""
    return call.output.numel() // spec.outputs


def functions(layer: nn.Module, spec: LayerSpec, calls: Sequence[Call]) -> Iterator[Tensor]:
    """Values ``(dim_w, rows)`` for each input of the sum, in the order of the edges' axes.

    Of a layer without groups. Images of one size come together.
    """
    shapes: dict[tuple[int, ...], list[Tensor]] = {}
    for call in calls:
        x = call.args[0] if spec.kernel else call.args[0].reshape(-1, call.args[0].shape[-1])
        shapes.setdefault(tuple(x.shape[1:]), []).append(x)
    each = _of_convolution if spec.kernel else _of_linear
    parts = [each(layer, spec, torch.cat(made)) for made in shapes.values()]
    for values in zip(*parts, strict=True):
        yield torch.cat(values, 1)


def _of_linear(layer: nn.Module, spec: LayerSpec, x: Tensor) -> Iterator[Tensor]:
    slots = _slots(layer, spec)
    given = _arguments(slots, layer, x)
    for start in range(0, x.shape[1], _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, x.shape[1]))
        parts = [e(given[before][:, columns].contiguous(), columns)[0] for before, e in slots]
        yield from torch.cat(parts, 1).permute(2, 1, 0).contiguous()


def _of_convolution(layer: nn.Module, spec: LayerSpec, x: Tensor) -> Iterator[Tensor]:
    assert isinstance(spec.basis, Convolution)
    geometry = conv_fast.geometry_of(_like(layer, spec.basis), spec.kernel)
    assert geometry is not None
    slots = _slots(layer, spec)
    given = _arguments(slots, layer, 0, x)
    sizes = geometry.outputs(x.shape[2:])
    steps = list(zip(geometry.dilation, geometry.stride, sizes, strict=True))
    around = [n for padding in reversed(geometry.padding) for n in (padding, padding)]
    for channel in range(x.shape[1]):
        parts = [e(given[before][:, channel].flatten(1), slice(0, 1))[0] for before, e in slots]
        values = torch.cat(parts, 1).transpose(0, 1)  # (dim_w, images, pixels)
        values = F.pad(values.reshape(*values.shape[:2], *x.shape[2:]), around)
        for tap in itertools.product(*map(range, geometry.kernel)):
            windows = [
                slice(at * dilation, at * dilation + stride * (size - 1) + 1, stride)
                for at, (dilation, stride, size) in zip(tap, steps, strict=True)
            ]
            index = (slice(None), slice(None), *windows)
            yield values[index].flatten(1)


def _like(layer: nn.Module, basis: Convolution) -> nn.Module:
    return layer.get_submodule(basis.like)
