"""Classes of converted layers: subclasses of the library's own, of the same name.

The coefficient tensors are properties that generate when they are read and refuse to be written.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from kanmeta import execution
from kanmeta.errors import CoefficientWriteError, SharingError
from kanmeta.execution import Binding
from kanmeta.guard import refusal

__all__ = ["ConvertedLayer", "GeneratesCoefficients", "converted_class"]


class GeneratesCoefficients:
    """Mixin of every module, a layer or a child of one, that has generated tensors.

    ``_generated`` maps attribute name -> path below the layer.
    """

    _generated: Mapping[str, str]
    _original: type[nn.Module]
    _writers: tuple[tuple[str, str], ...] | None
    _kanmeta: Binding

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build the library's own layer: ``type(layer)(4, 5)`` makes one that is not converted."""
        return cls._original(*args, **kwargs) if args or kwargs else object.__new__(cls)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to replace a generated tensor; everything else is as before."""
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

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse another meta-learner, which forward would not use."""
        if name == "meta_learner":
            raise SharingError(
                "a meta-learner is shared and cannot be replaced in one layer. Change its "
                "parameters in place, or materialize the model and convert it anew"
            )
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Add what was done to the layer to what the library prints."""
        theirs: str = super().extra_repr()  # type: ignore[misc]
        z = self._kanmeta.prompts
        ours = f"converted: prompts {tuple(z.shape)} in place of dim_w={self._kanmeta.spec.dim_w}"
        return f"{theirs}, {ours}" if theirs else ours


def _refuser(method: str, advice: str) -> Callable[..., None]:
    def refuse(self: GeneratesCoefficients, *args: object, **kwargs: object) -> None:
        name = f"{self._kanmeta.name or '(root)'} ({type(self).__name__})"
        raise CoefficientWriteError(f"{refusal(f'what {method} writes', name)} {advice}".strip())

    return refuse


def _property(path: str) -> property:
    def read(self: GeneratesCoefficients) -> Tensor:
        return self._kanmeta.read(path)

    return property(read, doc="Generated from prompts; cannot be written to.")


@cache
def converted_class(
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
    cls = converted_class(original, generated, writers)  # type: ignore[arg-type]
    return object.__new__(cls)
