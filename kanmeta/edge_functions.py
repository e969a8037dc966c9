"""Values of a layer's basis, one input of its sum after the other, as its adapter knows them.

A linear layer sums over inputs, a convolution over channels and positions of its kernel.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kanmeta import conv_fast, fast
from kanmeta.basis import Basis
from kanmeta.conv_basis import Convolution
from kanmeta.layer_metric import Call
from kanmeta.spec import LayerSpec

__all__ = ["are_known", "functions", "rows"]

_COLUMNS = 16  # inputs whose functions are evaluated at once


def are_known(layer: nn.Module, spec: LayerSpec, mapped: bool, calls: Sequence[Call]) -> bool:
    """Whether :func:`functions` has them, for a layer without groups and prompts of single taps."""
    basis = spec.basis
    if basis is None or not calls or any(call.kwargs for call in calls):
        return False
    if not isinstance(basis, Convolution):
        fits = all(fast.fits(spec, mapped, call.args) for call in calls)
    else:
        fits = spec.edge == "tap" and spec.sizes.get("g", 1) == 1
        fits = fits and all(conv_fast.fits(layer, spec, mapped, call.args) for call in calls)
        fits = fits and conv_fast.geometry_of(_like(layer, basis), spec.kernel) is not None
    return fits and all(
        basis.branches[slot.path].functions(layer) is not None for slot in spec.slots
    )


def rows(spec: LayerSpec, call: Call) -> int:
    """Outputs of a call for each output of the layer: rows, or images times pixels."""
    return call.output.numel() // spec.sizes["o"]


def functions(layer: nn.Module, spec: LayerSpec, calls: Sequence[Call]) -> Iterator[Tensor]:
    """Values ``(dim_w, rows)`` for each input of the sum, in the order of the edges' axes."""
    x = torch.cat([call.args[0].reshape(-1, *_one(spec, call.args[0])) for call in calls])
    if isinstance(spec.basis, Convolution):
        yield from _of_convolution(layer, spec, spec.basis, x)
    elif spec.basis is not None:
        yield from _of_linear(layer, spec, spec.basis, x)


def _one(spec: LayerSpec, x: Tensor) -> Sequence[int]:
    """Shape of one row or image."""
    return x.shape[1:] if spec.kernel else x.shape[-1:]


def _of_linear(layer: nn.Module, spec: LayerSpec, basis: Basis, x: Tensor) -> Iterator[Tensor]:
    branches = [basis.branches[slot.path] for slot in spec.slots]
    arguments = {branch.argument: branch.argument(layer, x) for branch in branches}
    for start in range(0, x.shape[1], _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, x.shape[1]))
        parts = [
            known.evaluate(arguments[branch.argument][:, columns].contiguous(), columns)[0]
            for branch in branches
            if (known := branch.functions(layer)) is not None
        ]
        yield from torch.cat(parts, dim=1).permute(2, 1, 0).contiguous()


def _of_convolution(
    layer: nn.Module, spec: LayerSpec, basis: Convolution, x: Tensor
) -> Iterator[Tensor]:
    geometry = conv_fast.geometry_of(_like(layer, basis), spec.kernel)
    assert geometry is not None
    branches = [basis.branches[slot.path] for slot in spec.slots]
    arguments = {branch.argument: branch.argument(layer, 0, x) for branch in branches}
    sizes = geometry.outputs(x.shape[2:])
    steps = list(zip(geometry.dilation, geometry.stride, sizes, strict=True))
    around = [n for padding in reversed(geometry.padding) for n in (padding, padding)]
    for channel in range(x.shape[1]):
        parts = [
            evaluate(arguments[branch.argument][:, channel].flatten(1), slice(0, 1))[0]
            for branch in branches
            if (evaluate := branch.functions(layer)) is not None
        ]
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
