"""Installing prompts and meta-learners into third-party layers, and taking them out again.

A layer keeps its object and its place; its class becomes a subclass of its own class with the same
name, in which the coefficient tensors are properties. Nothing but the recognised layers is touched.
"""

import copyreg
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import execution
from kanmeta.adapter import LayerSpec
from kanmeta.errors import CoefficientWriteError
from kanmeta.execution import Binding
from kanmeta.guard import refusal
from kanmeta.initialise import LayerInit
from kanmeta.meta import MetaLearner

__all__ = ["bindings", "install", "uninstall"]


class GeneratesCoefficients:
    """Mixin of every module, a layer or a child of one, that has generated tensors.

    ``_generated`` maps attribute name -> path below the layer.
    """

    _generated: Mapping[str, str]
    _original: type[nn.Module]
    _writers: tuple[tuple[str, str], ...] | None
    _kanmeta: Binding

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to replace a generated tensor; everything else is as before."""
        if name in type(self)._generated:
            raise CoefficientWriteError(refusal("assignment", self._label(name)))
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Refuse to delete a generated tensor."""
        if name in type(self)._generated:
            raise CoefficientWriteError(refusal("deletion", self._label(name)))
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse to register over a generated tensor (as ``torch.nn.utils.prune`` would)."""
        if name in type(self)._generated:
            raise CoefficientWriteError(refusal("registration", self._label(name)))
        super().register_parameter(name, param)  # type: ignore[misc]

    def _label(self, name: str) -> str:
        prefix = f"{self._kanmeta.name}." if self._kanmeta.name else ""
        return prefix + type(self)._generated[name]

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Report keys of an unconverted model's checkpoint instead of ignoring them."""
        error_messages: list[str] = args[-1] if args else kwargs["error_msgs"]
        for name in type(self)._generated:
            if prefix + name in state_dict:
                error_messages.append(refusal("the stored tensor", prefix + name))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and deepcopy by naming the library's class, which can be imported."""
        standard: Any = super().__reduce_ex__(max(int(protocol), 2))
        cls = type(self)
        arguments = (cls._original, tuple(cls._generated.items()), cls._writers)
        return (_rebuild, arguments, *standard[2:])


class ConvertedLayer(GeneratesCoefficients):
    """Mixin of a converted layer: its forward runs through :mod:`kanmeta.execution`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the library's forward with generated coefficients."""
        return execution.run(self._kanmeta, super().forward, args, kwargs)  # type: ignore[misc]

    def extra_repr(self) -> str:
        """Add what was done to the layer to what the library prints."""
        theirs: str = super().extra_repr()  # type: ignore[misc]
        z = self._kanmeta.prompts
        ours = f"converted: prompts {tuple(z.shape)} in place of dim_w={self._kanmeta.spec.dim_w}"
        return f"{theirs}, {ours}" if theirs else ours


def _refuser(method: str, advice: str) -> Callable[..., None]:
    def refuse(self: GeneratesCoefficients, *args: object, **kwargs: object) -> None:
        name = f"{self._kanmeta.name} ({type(self).__name__})"
        raise CoefficientWriteError(f"{refusal(f'what {method} writes', name)} {advice}".strip())

    return refuse


def _property(path: str) -> property:
    def read(self: GeneratesCoefficients) -> Tensor:
        return self._kanmeta.read(path)

    return property(read, doc="Generated from prompts; cannot be written to.")


@cache
def _converted_class(
    original: type[nn.Module],
    generated: tuple[tuple[str, str], ...],
    writers: tuple[tuple[str, str], ...] | None,
) -> type[nn.Module]:
    """Subclass of ``original`` with its name; cached, so equal layers stay of equal type.

    Args:
        original: the library's class.
        generated: (attribute, path below the layer) of each generated tensor.
        writers: methods of a layer to refuse, with advice; None for a child of a layer.
    """
    mixin = GeneratesCoefficients if writers is None else ConvertedLayer
    namespace: dict[str, Any] = {name: _property(path) for name, path in generated}
    namespace |= {
        name: _refuser(name, advice) for name, advice in writers or () if hasattr(original, name)
    }
    namespace |= {
        "_generated": dict(generated),
        "_original": original,
        "_writers": writers,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (mixin, original), namespace)


def _rebuild(
    original: type[nn.Module],
    generated: tuple[tuple[str, str], ...],
    writers: tuple[tuple[str, str], ...] | None,
) -> nn.Module:
    """Make an empty instance of a converted class, for pickle and deepcopy."""
    module: nn.Module = copyreg.__newobj__(  # type: ignore[attr-defined]
        _converted_class(original, generated, writers)  # type: ignore[arg-type]
    )
    return module


def bindings(model: nn.Module) -> Iterator[tuple[str, Binding]]:
    """Name and binding of every converted layer below ``model``, in the order of registration."""
    for name, module in model.named_modules():
        if isinstance(module, ConvertedLayer):
            yield name, module._kanmeta


Installation = tuple[str, nn.Module, LayerSpec, LayerInit, MetaLearner, str]
"""Name, layer, spec, first values, shared meta-learner, name of the execution mode."""


def install(layers: Sequence[Installation]) -> None:
    """Convert ``layers``.

    The first layer of each meta-learner owns it. If anything fails, every layer is put back.
    """
    with ExitStack() as undo:
        for name, layer, spec, values, meta, mode in layers:
            undo.callback(_restorer(layer, spec))
            _install(name, layer, spec, values, meta, mode)
        undo.pop_all()


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
        module.__class__ = _converted_class(
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
