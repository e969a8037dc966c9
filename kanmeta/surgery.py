"""Installing prompts and meta-learners into third-party layers, and taking them out again.

A layer keeps its object and its place; its class becomes one of :mod:`kanmeta.converted`. Nothing
but the recognised layers is touched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from kanmeta import registry
from kanmeta.binding import Binding
from kanmeta.converted import (
    ConvertedContainer,
    ConvertedLayer,
    converted_class,
    converted_container,
)
from kanmeta.initialise import LayerInit
from kanmeta.meta import MetaLearner
from kanmeta.plain import make_plain, owners
from kanmeta.spec import LayerSpec, Methods, tensor_at

__all__ = [
    "Installation",
    "bindings",
    "hand_over",
    "install",
    "install_containers",
    "is_converted",
    "release",
    "thaw",
    "uninstall",
]


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
        meta.requires_grad_(any(spec.requires_grad for spec in specs))
    with ExitStack() as undo:
        for name, layer, spec, values, meta, mode in layers:
            undo.callback(_restorer(layer, spec))
            _install(name, layer, spec, values, meta, mode)
        return undo.pop_all().close


def _install(
    name: str,
    layer: nn.Module,
    spec: LayerSpec,
    values: LayerInit,
    meta: MetaLearner,
    mode: str,
) -> None:
    places = owners(layer, spec)
    order = {prefix: tuple(module._parameters) for prefix, (module, _) in places.items()}
    binding = Binding(name, layer, spec, meta, mode, order)
    for prefix, (module, generated) in places.items():
        for attribute in generated:
            del module._parameters[attribute]
        module.__dict__["_kanmeta"] = binding
        module.__class__ = converted_class(
            type(module),  # type: ignore[arg-type]
            tuple(generated.items()),
            spec.methods if prefix == "" else None,
        )
    layer.register_parameter("prompts", nn.Parameter(values.prompts, spec.requires_grad))
    layer.register_buffer("coefficient_scale", values.scale)
    layer.register_buffer("coefficient_offset", values.offset)
    layer.register_buffer("coefficient_map", values.map)
    for parameter in layer.parameters():
        # Several numbers in one place (torch-conv-kan's phases): an optimiser could not step.
        if 0 in parameter.stride() and parameter.numel() > 1:
            parameter.data = parameter.data.contiguous()
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
        for module, _ in owners(layer, spec).values()
    ]
    data = [(parameter, parameter.data) for parameter in layer.parameters()]

    def restore() -> None:
        for parameter, values in data:
            parameter.data = values
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


def is_converted(model: nn.Module) -> bool:
    """Whether any layer below ``model`` is converted."""
    return any(isinstance(module, ConvertedLayer) for module in model.modules())


def uninstall(model: nn.Module) -> bool:
    """Turn what is converted below ``model`` back into the library's own; say if there was any.

    Layers hold their coefficients w as plain Parameters afterwards.
    """
    layers = [binding for _, binding in bindings(model)]
    with torch.no_grad():
        plain = [binding.spec.split(binding.coefficients()) for binding in layers]
    for binding, tensors in zip(layers, plain, strict=True):
        release(binding)
        make_plain(binding, {path: tensor.clone() for path, tensor in tensors.items()})
    return _uninstall_containers(model) or bool(layers)


def release(binding: Binding) -> None:
    """Take a layer from its meta-learner; if it owns it, the next layer that uses it does then."""
    meta = binding.meta_learner
    meta.bindings.remove(binding)
    owned = binding.layer._modules.pop("meta_learner", None) is not None
    if owned and meta.bindings:
        heir = meta.bindings[0]
        assert isinstance(heir, Binding)
        heir.layer.register_module("meta_learner", meta)


def hand_over(layers: Sequence[Binding]) -> None:
    """Let other layers own the meta-learners that they share with these, which may be replaced."""
    for meta in {binding.meta_learner for binding in layers}:
        outside = [b for b in meta.bindings if isinstance(b, Binding) and b not in layers]
        owner = next((b for b in layers if b.layer._modules.get("meta_learner") is meta), None)
        if owner is not None and outside:
            del owner.layer._modules["meta_learner"]
            outside[0].layer.register_module("meta_learner", meta)


FROZEN = "_kanmeta_frozen"
"""Attribute of a container: paths of the Parameters that a conversion has frozen."""


def install_containers(model: nn.Module, freeze: bool) -> Callable[[], None]:
    """Let the models of a library around converted layers look after these; return an undo.

    Args:
        model: any module.
        freeze: whether Parameters that have no effect stop being trained.
    """
    with ExitStack() as undo:
        for module in list(model.modules()):
            container = registry.container_of(module)
            if container is None or not is_converted(module):
                continue
            if not isinstance(module, ConvertedContainer):
                undo.callback(_uninstall_container, module)
                methods = Methods(
                    refused=tuple(container.writers.items()),
                    reindexers=container.reindexers,
                    revives=container.revives,
                )
                module.__class__ = converted_container(type(module), methods)  # type: ignore[arg-type]
                module.__dict__[FROZEN] = ()
            if freeze:
                dead = [p for p in container.dead(module) if tensor_at(module, p).requires_grad]
                module.__dict__[FROZEN] += tuple(dead)
                for path in dead:
                    tensor_at(module, path).requires_grad_(False)
        return undo.pop_all().close


def _uninstall_containers(model: nn.Module) -> bool:
    """Give models without converted layers their library's classes back; say if there were any."""
    empty = [
        module
        for module in model.modules()
        if isinstance(module, ConvertedContainer) and not is_converted(module)
    ]
    for module in empty:
        _uninstall_container(module)
    return bool(empty)


def _uninstall_container(module: nn.Module) -> None:
    for path in module.__dict__.pop(FROZEN):
        tensor_at(module, path).requires_grad_(True)
    module.__class__ = type(module)._original  # type: ignore[attr-defined]


def thaw(module: nn.Module) -> None:
    """Train the frozen Parameters of a container again that have come to have an effect."""
    container = registry.container_of(module)
    assert container is not None
    dead = container.dead(module)
    for path in module.__dict__[FROZEN]:
        tensor_at(module, path).requires_grad_(path not in dead)
