"""Running a library's method that moves edges about: swap, get_subset, prune, copy, save.

The method runs on plain layers of the library. Afterwards each edge is found again by its
coefficients, to the last bit, and gets the prompt it had: in the layer itself, and in the layers
of a model that the method returns, which so comes back converted.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import registry
from kanmeta.adapter import Adapter
from kanmeta.binding import Binding
from kanmeta.converted import ConvertedLayer
from kanmeta.edits import Moved, moved_edges
from kanmeta.errors import CoefficientWriteError, LayoutError, PlainModelWarning
from kanmeta.guard import refusal
from kanmeta.initialise import LayerInit
from kanmeta.meta import MetaLearner
from kanmeta.plain import plain_layers
from kanmeta.recognition import describe, without_dead
from kanmeta.spec import LayerSpec, tensor_at
from kanmeta.surgery import (
    FROZEN,
    Installation,
    bindings,
    hand_over,
    install,
    install_containers,
    release,
)

__all__ = ["run"]


def run(module: nn.Module, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call the library's ``method`` of ``module``, a converted layer or a model of such.

    Returns:
        What the method returns; if that is another module, converted where its coefficients are
        those of edges of ``module``, else plain, with a PlainModelWarning.

    Raises:
        CoefficientWriteError: the method did more than move edges of ``module`` itself.
    """
    layers = [binding for _, binding in bindings(module)]
    with torch.no_grad():
        before = [binding.coefficients() for binding in layers]
    cls = type(module)
    with plain_layers(layers):
        module.__class__ = cls._original  # type: ignore[attr-defined]
        try:
            result = getattr(module, method)(*args, **kwargs)
        finally:
            module.__class__ = cls
        after = [binding.spec.read(binding.layer) for binding in layers]
    for binding, old, new in zip(layers, before, after, strict=True):
        if not torch.equal(old, new):
            _move(binding, method, old, new)
    kept = {*module.modules()}
    replaced = [binding for binding in layers if binding.layer not in kept]
    for binding in replaced:
        release(binding)
    if replaced:
        names = ", ".join(binding.name for binding in replaced)
        _warn(f"{method} put plain layers in the place of {names}")
    if isinstance(result, nn.Module) and result is not module:
        hand_over([binding for binding in layers if binding.layer in kept])
        _convert_like(result, method, module, layers, before)
        install_containers(result, freeze=bool(vars(module).get(FROZEN)))
    return result


def _warn(what: str) -> None:
    text = f"{what}; kanmeta.convert(model) converts them anew"
    warnings.warn(text, PlainModelWarning, stacklevel=5)


def _output_axis(binding: Binding) -> int:
    return binding.spec.edge_axes.index("o")


@torch.no_grad()
def _move(binding: Binding, method: str, old: Tensor, new: Tensor) -> None:
    """Give each edge of a layer the prompt that belongs to its new coefficients."""
    moved = moved_edges(new, old, _output_axis(binding))
    values = None if moved is None else _values(binding, moved)
    if values is None:
        raise CoefficientWriteError(refusal(f"what {method} writes", binding.label("")))
    binding.prompts.copy_(values.prompts)
    binding.map = values.map


def _values(binding: Binding, moved: Moved) -> LayerInit | None:
    """Prompts and constants of a layer whose edges come from ``binding``'s as ``moved`` says."""
    z, coefficient_map = binding.prompts.detach(), binding.map
    prompts = z.reshape(-1, z.shape[-1])[moved.source.to(z.device)]
    if coefficient_map is not None:
        if moved.inputs is None:
            return None
        size = coefficient_map.shape[-1]
        flat = coefficient_map.reshape(-1, size, size)
        coefficient_map = flat[moved.inputs.to(z.device)]
    scale = tensor_at(binding.layer, "coefficient_scale").clone()
    offset = tensor_at(binding.layer, "coefficient_offset").clone()
    return LayerInit(prompts, scale, offset, coefficient_map)


def _convert_like(
    result: nn.Module,
    method: str,
    module: nn.Module,
    layers: Sequence[Binding],
    before: Sequence[Tensor],
) -> None:
    """Convert the layers of ``result`` with the prompts of the edges that they were made from."""
    names_before = {name for name, _ in bindings(module)}
    adapters = {adapter.name: adapter for adapter in reversed(registry.all_adapters())}
    metas: dict[MetaLearner, MetaLearner] = {}
    ready: list[Installation] = []
    origins: list[Binding] = []
    for name, layer in result.named_modules():
        if isinstance(layer, ConvertedLayer):
            continue
        candidates = [
            (binding, old, adapters[binding.spec.adapter])
            for binding, old in zip(layers, before, strict=True)
            if binding.spec.adapter in adapters and adapters[binding.spec.adapter].considers(layer)
        ]
        if not candidates or (name not in names_before and result is not layer):
            continue  # no layer, or one that was plain before
        candidates.sort(key=lambda candidate: not candidate[0].name.endswith(name))
        for binding, old, adapter in candidates:
            found = _made_from(layer, binding, old, adapter)
            if found is not None:
                meta = binding.meta_learner
                metas.setdefault(meta, copy.deepcopy(meta))
                ready.append((name, layer, *found, metas[meta], binding.execution))
                origins.append(binding)
                break
        else:
            _warn(
                f"{method} returns a plain model: {name or 'its layer'} has coefficients that no "
                "edge had before"
            )
            return
    install(ready)
    for (_, layer, *_), binding in zip(ready, origins, strict=True):
        for name, tensor in layer.named_parameters(recurse=False):
            theirs = binding.layer._parameters.get(name)
            tensor.requires_grad_(theirs is None or theirs.requires_grad)
    for old_meta, new_meta in metas.items():
        for p, q in zip(old_meta.parameters(), new_meta.parameters(), strict=True):
            q.requires_grad_(p.requires_grad)


def _made_from(
    layer: nn.Module, binding: Binding, old: Tensor, adapter: Adapter
) -> tuple[LayerSpec, LayerInit] | None:
    """How to convert ``layer`` if its edges are those of ``binding``'s layer."""
    slots = [slot.path for slot in binding.spec.slots]
    try:
        spec = describe(adapter, layer, binding.spec.edge, only=slots)
    except LayoutError:
        return None
    spec = without_dead(spec, layer) if binding.spec.dropped else spec
    if spec.kind != binding.spec.kind:
        return None
    moved = moved_edges(spec.read(layer), old, _output_axis(binding))
    values = None if moved is None else _values(binding, moved)
    return None if values is None else (spec, values)
