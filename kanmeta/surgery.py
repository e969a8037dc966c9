"""Installing prompts and meta-learners into third-party layers, and taking them out again.

A layer keeps its object and its place; its class becomes one of :mod:`kanmeta.converted`. Nothing
but the recognised layers is touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta.converted import ConvertedLayer, converted_class
from kanmeta.execution import Binding
from kanmeta.initialise import LayerInit
from kanmeta.meta import MetaLearner
from kanmeta.spec import LayerSpec

__all__ = ["bindings", "install", "uninstall"]


def bindings(model: nn.Module) -> Iterator[tuple[str, Binding]]:
    """Name and binding of every converted layer below ``model``, in the order of registration."""
    for name, module in model.named_modules():
        if isinstance(module, ConvertedLayer):
            yield name, module._kanmeta


Installation = tuple[str, nn.Module, LayerSpec, LayerInit, MetaLearner, str]
"""Name, layer, spec, first values, shared meta-learner, name of the execution mode."""


def install(layers: Sequence[Installation]) -> Callable[[], None]:
    """Convert ``layers``; return a function that undoes it.

    The first layer of each meta-learner owns it. If anything fails, every layer is put back.
    """
    for meta in {meta for *_, meta, _ in layers}:  # trained if a layer that uses it is
        specs = [spec for _, _, spec, _, m, _ in layers if m is meta]
        meta.requires_grad_(any(slot.requires_grad for spec in specs for slot in spec.slots))
    with ExitStack() as undo:
        for name, layer, spec, values, meta, mode in layers:
            undo.callback(_restorer(layer, spec))
            _install(name, layer, spec, values, meta, mode)
        return undo.pop_all().close


def _owners(layer: nn.Module, spec: LayerSpec) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """Modules that hold generated tensors: path of the module -> (module, attribute -> path)."""
    owners: dict[str, tuple[nn.Module, dict[str, str]]] = {"": (layer, {})}
    for path in spec.paths:
        prefix, _, attribute = path.rpartition(".")
        owners.setdefault(prefix, (layer.get_submodule(prefix), {}))[1][attribute] = path
    return owners


def _install(
    name: str,
    layer: nn.Module,
    spec: LayerSpec,
    values: LayerInit,
    meta: MetaLearner,
    mode: str,
) -> None:
    owners = _owners(layer, spec)
    order = {prefix: tuple(module._parameters) for prefix, (module, _) in owners.items()}
    binding = Binding(name, layer, spec, meta, mode, order)
    trainable = any(slot.requires_grad for slot in spec.slots)
    for prefix, (module, generated) in owners.items():
        for attribute in generated:
            del module._parameters[attribute]
        module.__dict__["_kanmeta"] = binding
        module.__class__ = converted_class(
            type(module),  # type: ignore[arg-type]
            tuple(generated.items()),
            spec.writers if prefix == "" else None,
        )
    layer.register_parameter("prompts", nn.Parameter(values.prompts, requires_grad=trainable))
    layer.register_buffer("coefficient_scale", values.scale)
    layer.register_buffer("coefficient_offset", values.offset)
    if not meta.bindings:
        layer.register_module("meta_learner", meta)
    meta.bindings.append(binding)


def _restorer(layer: nn.Module, spec: LayerSpec) -> Any:
    """Return a function that undoes everything ``_install`` may have done to ``layer``."""
    saved = [
        (
            module,
            type(module),
            dict(module._parameters),
            dict(module._buffers),
            dict(module._modules),
        )
        for module, _ in _owners(layer, spec).values()
    ]

    def restore() -> None:
        for module, cls, parameters, buffers, modules in saved:
            module.__class__ = cls
            module.__dict__.pop("_kanmeta", None)
            for current, before in (
                (module._parameters, parameters),
                (module._buffers, buffers),
                (module._modules, modules),
            ):
                current.clear()
                current.update(before)  # type: ignore[arg-type]

    return restore


def uninstall(layers: Sequence[Binding]) -> None:
    """Turn converted layers back into the library's own, with plain Parameters holding w."""
    with torch.no_grad():
        plain = [binding.spec.split(binding.coefficients()) for binding in layers]
    for binding, tensors in zip(layers, plain, strict=True):
        _uninstall(binding, tensors)


def _uninstall(binding: Binding, tensors: Mapping[str, Tensor]) -> None:
    layer, meta = binding.layer, binding.meta_learner
    trainable = {slot.path: slot.requires_grad for slot in binding.spec.slots}
    trainable |= {
        slot.scaled_by: slot.scaler_requires_grad
        for slot in binding.spec.slots
        if slot.scaled_by is not None
    }
    for name in ("prompts", "coefficient_scale", "coefficient_offset"):
        delattr(layer, name)
    owned = layer._modules.pop("meta_learner", None) is not None
    for prefix, (module, generated) in _owners(layer, binding.spec).items():
        module.__class__ = type(module)._original  # type: ignore[attr-defined]
        del module.__dict__["_kanmeta"]
        for attribute, path in generated.items():
            parameter = nn.Parameter(tensors[path], requires_grad=trainable[path])
            module.register_parameter(attribute, parameter)
        for name in binding.order[prefix]:  # optimisers and state_dict go by position
            if name in module._parameters:
                module._parameters[name] = module._parameters.pop(name)
    meta.bindings.remove(binding)
    if owned and meta.bindings:
        heir = meta.bindings[0]
        assert isinstance(heir, Binding)
        heir.layer.register_module("meta_learner", meta)
