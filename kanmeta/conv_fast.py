"""Whether a convolution can run by :mod:`kanmeta.conv_tiles`, found out as in :mod:`kanmeta.fast`.

The first time, and whenever the layer has changed, its library's forward and gradients are compared
with ours on a few small random images. Where they differ, it runs as if nothing were known of its
basis.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import conv_tiles, fast, policy, stream
from kanmeta.conv_basis import Convolution
from kanmeta.conv_cut import Geometry
from kanmeta.functions import Functions
from kanmeta.independence import without_dropout
from kanmeta.shadow import Shadow, has_hooks, rows_are_mixed
from kanmeta.spec import LayerSpec
from kanmeta.stream import Sources

__all__ = ["agrees", "compute", "fits", "geometry_of"]


def fits(layer: nn.Module, spec: LayerSpec, mapped: bool, args: tuple[Any, ...]) -> bool:
    """Whether the call is one that a declared basis describes: the layer's input and no more.

    Norms may mix images: they run on all of them.
    """
    basis, kernel = spec.basis, spec.kernel
    if not isinstance(basis, Convolution) or spec.rows == "never" or mapped or len(args) != 1:
        return False
    x = args[0]
    return (
        isinstance(x, Tensor)
        and x.dtype in fast.TOLERANCES
        and x.dim() == 2 + len(kernel)
        and x.shape[1] == spec.sizes["i"] * _groups(spec)
        and all(slot.path in basis.branches for slot in spec.slots)
        and not torch.is_autocast_enabled(x.device.type)
        and not has_hooks(layer)
    )


def compute(
    layer: nn.Module,
    spec: LayerSpec,
    x: Tensor,
    sources: Sources,
    *,
    activation: str,
    generate: Callable[[Sources], Tensor],
    budget: int | None,
) -> Tensor | None:
    """Run the layer; None if its basis or its convolution is not one that is known.

    Args:
        layer: whose norms and other tensors are used.
        spec: of the layer.
        x: ``(N, in, *space)``.
        sources: see :meth:`kanmeta.binding.Binding.sources`.
        activation: of the meta-learner.
        generate: sources -> coefficients, differentiable.
        budget: bytes of scratch; None: see :func:`kanmeta.policy.convolution_budget`.
    """
    basis = spec.basis
    assert isinstance(basis, Convolution)
    geometry = geometry_of(layer.get_submodule(basis.like), spec.kernel)
    branches = [basis.branches[slot.path] for slot in spec.slots]
    each = [f for f in (branch.functions(layer) for branch in branches) if f is not None]
    if geometry is None or len(each) != len(branches) or min(geometry.outputs(x.shape[2:])) < 1:
        return None
    grouped, groups = spec.edge_axes[0] == "g", _groups(spec)
    kinds = list(dict.fromkeys(branch.argument for branch in branches))
    taps = 1 if spec.edge == "tap" else geometry.taps  # that one prompt stands for
    described = conv_tiles.Layer(
        functions=Functions(
            each, [w // taps for w in spec.widths], [kinds.index(b.argument) for b in branches]
        ),
        geometry=geometry,
        activation=activation,
        generate=generate,
        scratch=budget or _default_budget(spec, geometry, x),
    )
    z = sources[0]
    assert z is not None
    # Cut and joined in one call each: gradients of many slices would be added up whole.
    inputs = torch.split(x, spec.sizes["i"], 1) if groups > 1 else (x,)
    prompts = z.unbind() if grouped else (z,)
    outputs = []
    for group, (part, own) in enumerate(zip(inputs, prompts, strict=True)):
        arguments = tuple(kind(layer, group, part) for kind in kinds)
        y = conv_tiles.apply(described, arguments, (own, *sources[1:]))
        outputs.append(_finish(layer, spec, group, y))
    return outputs[0] if groups == 1 else torch.cat(outputs, 1)


def agrees(
    layer: nn.Module,
    spec: LayerSpec,
    forward: Callable[..., Any],
    generated: dict[str, Tensor],
    ours: Callable[[nn.Module, Tensor], Tensor | None],
    x: Tensor,
) -> bool:
    """Whether values and gradients are those of the library, on a few random images.

    They are computed on a copy: norms keep statistics of what they have seen.

    Args:
        layer: a converted layer.
        spec: of the layer.
        forward: of the library, as a function.
        generated: tensors that the forward reads, by path.
        ours: ``(layer, x) -> y``.
        x: an input; the images are no larger.
    """
    basis = spec.basis
    assert isinstance(basis, Convolution)
    geometry = geometry_of(layer.get_submodule(basis.like), spec.kernel)
    if geometry is None:
        return False
    small = [
        min(size, geometry.extent(axis) + 3 * geometry.stride[axis])
        for axis, size in enumerate(x.shape[2:])
    ]
    shadow = Shadow(layer)
    copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in shadow.tensors]
    learned = [t for t in copies if t.requires_grad]
    one, other = (
        without_dropout(shadow.layer([_twin(t) for t in copies], generated)) for _ in range(2)
    )
    shape = 3, x.shape[1], *small
    try:
        return fast.agree(shape, lambda x: ours(one, x), lambda x: forward(other, x), x, learned)
    except (RuntimeError, ValueError, IndexError, TypeError):  # the library's own complaint follows
        return False


def _twin(t: Tensor) -> Tensor:
    """Trained tensors are the same for both, so that gradients can be asked for; others not."""
    return t if t.requires_grad else t.clone()


def _finish(layer: nn.Module, spec: LayerSpec, group: int, y: Tensor) -> Tensor:
    """What follows the convolution, in blocks of images and again in backward: it keeps ``y`` only.

    Unless it mixes images: then it would also count the batch in its statistics twice.
    """
    basis = spec.basis
    assert isinstance(basis, Convolution)
    finish = basis.finish
    if finish is None:
        return y
    if rows_are_mixed(layer, spec) is not None:
        return finish(layer, group, y)

    return stream.again(layer, lambda layer, y: finish(layer, group, y), y)


def _default_budget(spec: LayerSpec, geometry: Geometry, x: Tensor) -> int:
    numbers = len(x) * spec.outputs * math.prod(geometry.outputs(x.shape[2:]))
    return policy.convolution_budget(spec.edges, numbers * x.element_size())


def _groups(spec: LayerSpec) -> int:
    return spec.sizes["g"] if "g" in spec.edge_axes else 1


def geometry_of(convolution: nn.Module, kernel: tuple[int, ...]) -> Geometry | None:
    """Of a torch convolution; None if it pads with other numbers than 0, or as much as needed."""
    padding = getattr(convolution, "padding", None)
    if getattr(convolution, "padding_mode", "zeros") != "zeros" or not isinstance(padding, tuple):
        return None
    return Geometry(kernel, convolution.stride, padding, convolution.dilation)  # type: ignore[arg-type]
