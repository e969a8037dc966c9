"""Classes of converted layers: subclasses of the library's own, of the same name.

The coefficient tensors are properties that generate when they are read and refuse to be written.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from kanmeta import edits, execution
from kanmeta.binding import Binding
from kanmeta.errors import CoefficientWriteError, SharingError
from kanmeta.guard import refusal
from kanmeta.spec import Methods

__all__ = [
    "ConvertedContainer",
    "ConvertedLayer",
    "GeneratesCoefficients",
    "converted_class",
    "converted_container",
]


class Replaced:
    """Mixin of every class that stands in for one of a library, under its name.

    ``_original`` is the library's class, ``_arguments`` what the stand-in is made from.
    """

    _original: type[nn.Module]
    _arguments: tuple[Any, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build the library's own layer: ``type(layer)(4, 5)`` makes one that is not converted."""
        return cls._original(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and deepcopy by naming the library's class, which can be imported."""
        standard: Any = super().__reduce_ex__(max(int(protocol), 2))
        return (_rebuild, type(self)._arguments, *standard[2:])


class GeneratesCoefficients(Replaced):
    """Mixin of every module, a layer or a child of one, that has generated tensors.

    ``_generated`` maps attribute name -> path below the layer.
    """

    _generated: Mapping[str, str]
    _kanmeta: Binding

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to replace a generated tensor; everything else is as before."""
        path = type(self)._generated.get(name)
        if path is not None and self._kanmeta.is_reading(path, value):
            return  # layer.w = layer.w.to(x.device) changes nothing
        self._refuse("assignment", name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Refuse to delete a generated tensor."""
        self._refuse("deletion", name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse to register over a generated tensor (as ``torch.nn.utils.prune`` would)."""
        self._refuse("registration", name)
        super().register_parameter(name, param)  # type: ignore[misc]

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Refuse to register over a generated tensor."""
        self._refuse("registration", name)
        super().register_buffer(name, tensor, persistent)  # type: ignore[misc]

    def _refuse(self, what: str, name: str) -> None:
        """Raise if ``name`` is a generated tensor's."""
        path = type(self)._generated.get(name)
        if path is not None:
            raise CoefficientWriteError(refusal(what, self._kanmeta.label(path)))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Report keys of an unconverted model's checkpoint instead of ignoring them."""
        error_messages: list[str] = args[-1] if args else kwargs["error_msgs"]
        for name in type(self)._generated:
            if prefix + name in state_dict:
                error_messages.append(refusal("the stored tensor", prefix + name))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]


class ConvertedLayer(GeneratesCoefficients):
    """Mixin of a converted layer: its forward runs through :mod:`kanmeta.execution`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the library's forward with generated coefficients."""
        return execution.run(self._kanmeta, super().forward, args, kwargs)  # type: ignore[misc]

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse another meta-learner, which forward would not use."""
        if name == "meta_learner":
            raise SharingError(
                "a meta-learner is shared and cannot be replaced in one layer. Change its "
                "parameters in place, or materialize the model and convert it anew"
            )
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or cast: also what the library keeps in plain attributes, a grid for instance."""
        result = super()._apply(fn, recurse)  # type: ignore[misc]
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and not value.requires_grad:
                self.__dict__[name] = fn(value)
        return result

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the map of a grid update too, or that there was none."""
        z, stored = self._kanmeta.prompts, state_dict.get(f"{prefix}coefficient_map")
        present = f"{prefix}prompts" in state_dict
        if present:
            empty = None if stored is None else z.new_empty(stored.shape)
            vars(self)["_buffers"]["coefficient_map"] = empty
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Add what was done to the layer to what the library prints."""
        theirs: str = super().extra_repr()  # type: ignore[misc]
        z = self._kanmeta.prompts
        ours = f"converted: prompts {tuple(z.shape)} in place of dim_w={self._kanmeta.spec.dim_w}"
        return f"{theirs}, {ours}" if theirs else ours


class ConvertedContainer(Replaced):
    """Mixin of a library's model whose methods rebuild, copy or store converted layers."""


def _refuser(method: str, advice: str) -> Callable[..., Any]:
    def refuse(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kind = type(self).__name__
        if isinstance(self, ConvertedContainer):
            if not any(isinstance(m, ConvertedLayer) for m in self.modules()):
                return getattr(super(type(self), self), method)(*args, **kwargs)
            name = f"coefficients of this {kind}"
        else:
            name = f"{vars(self)['_kanmeta'].name or '(root)'} ({kind})"
        raise CoefficientWriteError(f"{refusal(f'what {method} writes', name)} {advice}".strip())

    return refuse


def _grid_updater(method: str, outputs: str) -> Callable[..., Any]:
    def update(self: GeneratesCoefficients, *args: Any, **kwargs: Any) -> Any:
        return edits.update_grid(self._kanmeta, method, outputs, args, kwargs)

    return update


def _reindexer(method: str) -> Callable[..., Any]:
    def move(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        from kanmeta import moves  # which installs layers, for which it needs this module

        return moves.run(self, method, args, kwargs)

    return move


def _reviver(method: str) -> Callable[..., Any]:
    def revive(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        from kanmeta import surgery  # as above

        result = getattr(super(type(self), self), method)(*args, **kwargs)
        surgery.thaw(self)
        return result

    return revive


def _uncached(original: type[nn.Module]) -> dict[str, Any]:
    """Methods of ``original`` behind an ``lru_cache``, without it.

    Keyed on tensors it never hits, but keeps layer, input, basis and autograd graph alive.
    """
    found = {}
    for name in dir(original):
        method = inspect.getattr_static(original, name)
        if hasattr(method, "cache_clear") and hasattr(method, "__wrapped__"):
            found[name] = method.__wrapped__
    return found


def _property(path: str) -> property:
    def read(self: GeneratesCoefficients) -> Tensor:
        return self._kanmeta.read(path)

    return property(read, doc="Generated from prompts; cannot be written to.")


def _stand_in(
    original: type[nn.Module], mixin: type, namespace: dict[str, Any], arguments: tuple[Any, ...]
) -> type[nn.Module]:
    namespace |= {
        "_original": original,
        "_arguments": arguments,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (mixin, original), namespace)


def _overrides(original: type[nn.Module], methods: Methods) -> dict[str, Any]:
    every = {name: _refuser(name, advice) for name, advice in methods.refused}
    every |= {name: _grid_updater(name, outputs) for name, outputs in methods.grid_updates}
    every |= {name: _reindexer(name) for name in methods.reindexers}
    every |= {name: _reviver(name) for name in methods.revives}
    return {name: method for name, method in every.items() if hasattr(original, name)}


@cache
def converted_class(
    original: type[nn.Module],
    generated: tuple[tuple[str, str], ...],
    methods: Methods | None,
) -> type[nn.Module]:
    """Subclass of ``original`` with its name; cached, so equal layers stay of equal type.

    Args:
        original: the library's class.
        generated: (attribute, path below the layer) of each generated tensor.
        methods: of a layer that write coefficients; None for a child of a layer.
    """
    namespace: dict[str, Any] = {name: _property(path) for name, path in generated}
    namespace |= _uncached(original) | _overrides(original, methods or Methods())
    namespace["_generated"] = dict(generated)
    mixin = GeneratesCoefficients if methods is None else ConvertedLayer
    return _stand_in(original, mixin, namespace, (original, generated, methods))


@cache
def converted_container(original: type[nn.Module], methods: Methods) -> type[nn.Module]:
    """Subclass of ``original``, a model, with its name."""
    namespace = _overrides(original, methods)
    return _stand_in(original, ConvertedContainer, namespace, (original, None, methods))


def _rebuild(
    original: type[nn.Module],
    generated: tuple[tuple[str, str], ...] | None,
    methods: Methods | None,
) -> nn.Module:
    """Make an empty instance of a stand-in class, for pickle and deepcopy."""
    if generated is None:
        assert methods is not None
        return object.__new__(converted_container(original, methods))  # type: ignore[arg-type]
    cls = converted_class(original, generated, methods)  # type: ignore[arg-type]
    return object.__new__(cls)
