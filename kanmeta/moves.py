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
from kanmeta.converted import ConvertedLayer
from kanmeta.edits import Moved, moved_edges
from kanmeta.errors import CoefficientWriteError, PlainModelWarning
from kanmeta.execution import Binding
from kanmeta.guard import refusal
from kanmeta.initialise import LayerInit
from kanmeta.meta import MetaLearner
from kanmeta.plain import plain_layers
from kanmeta.spec import tensor_at
from kanmeta.surgery import (
    FROZEN,
    Installation,
    bindings,
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
    for binding in layers:
        if binding.layer not in kept:
            release(binding)
    if isinstance(result, nn.Module) and result is not module:
        _convert_like(result, method, layers, before)
        install_containers(result, freeze=bool(vars(module).get(FROZEN)))
    return result


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
    result: nn.Module, method: str, layers: Sequence[Binding], before: Sequence[Tensor]
) -> None:
    """Convert the layers of ``result`` with the prompts of the edges that they were made from."""
    metas: dict[MetaLearner, MetaLearner] = {}
    ready: list[Installation] = []
    for name, layer in result.named_modules():
        if isinstance(layer, ConvertedLayer):
            continue
        spec, _ = registry.recognise(
            layer, registry.all_adapters(), edge=layers[0].spec.edge if layers else "tap"
        )
        if spec is None or not spec.slots:
            continue
        w = spec.read(layer)
        same_name_first = sorted(
            zip(layers, before, strict=True),
            key=lambda pair: not pair[0].name.endswith(name),
        )
        for binding, old in same_name_first:
            if binding.spec.kind != spec.kind or binding.spec.edge_axes != spec.edge_axes:
                continue
            moved = moved_edges(w, old, _output_axis(binding))
            values = None if moved is None else _values(binding, moved)
            if values is not None:
                meta = binding.meta_learner
                metas.setdefault(meta, copy.deepcopy(meta))
                ready.append((name, layer, spec, values, metas[meta], binding.execution))
                break
        else:
            warnings.warn(
                f"{method} returns a plain, unconverted model: {name or 'its layer'} has "
                "coefficients that no edge had before. kanmeta.convert(model) converts it anew",
                PlainModelWarning,
                stacklevel=4,
            )
            return
    install(ready)
