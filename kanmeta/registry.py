"""Which adapters there are, and which one recognises a layer.

Asked in this order, first match wins: adapters passed to ``convert``, adapters registered with
:func:`register_adapter`, the built-in ones, then those that installed packages offer through the
entry point group ``kanmeta.adapters``.
"""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType

from torch import nn

from kanmeta.adapter import Adapter, Container, placeholders
from kanmeta.errors import AdapterError, BrokenLayerError, LayoutError
from kanmeta.recognition import CheckFailedError, OtherTensorsError, describe
from kanmeta.spec import LayerSpec

__all__ = [
    "adapter_for",
    "all_adapters",
    "container_of",
    "lookalikes",
    "recognise",
    "register_adapter",
]

_registered: dict[str, Adapter] = {}


def register_adapter(adapter: Adapter) -> Adapter:
    """Add ``adapter`` for the rest of the process; it is asked before the built-in ones.

    >>> mine = kanmeta.register_adapter(kanmeta.adapter_for("MyLinear", like="efficient-kan"))
    >>> mine.name
    'efficient-kan as MyLinear'

    Returns:
        The adapter itself.

    Raises:
        AdapterError: an adapter of this name exists already.
    """
    if not isinstance(adapter, Adapter):
        raise AdapterError(f"expected a kanmeta.Adapter, got a {type(adapter).__name__}")
    taken = {a.name for a in (*_registered.values(), *_built_in(), *_entry_points())}
    if adapter.name in taken:
        raise AdapterError(
            f"there is an adapter called {adapter.name!r} already "
            f"(taken: {', '.join(sorted(taken))}). Choose another name, or pass yours to "
            "convert(model, adapters=[...]), where it is asked first."
        )
    _registered[adapter.name] = adapter
    return adapter


@cache
def _modules() -> tuple[ModuleType, ...]:
    package = importlib.import_module("kanmeta.adapters")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    return tuple(importlib.import_module(f"{package.__name__}.{name}") for name in names)


@cache
def _built_in() -> tuple[Adapter, ...]:
    return tuple(adapter for module in _modules() for adapter in module.ADAPTERS)


@cache
def _containers() -> tuple[Container, ...]:
    return tuple(c for module in _modules() for c in getattr(module, "CONTAINERS", ()))


@cache
def _entry_points() -> tuple[Adapter, ...]:
    found: list[Adapter] = []
    for point in importlib.metadata.entry_points(group="kanmeta.adapters"):
        adapter = point.load()
        if not isinstance(adapter, Adapter):
            raise AdapterError(
                f"entry point {point.name!r} ({point.value}) is a {type(adapter).__name__}, "
                "expected a kanmeta.Adapter. Fix or uninstall the package that offers it."
            )
        found.append(adapter)
    return tuple(found)


def all_adapters(extra: Sequence[Adapter] = ()) -> tuple[Adapter, ...]:
    """All adapters in the order in which they are asked.

    Raises:
        AdapterError: ``extra`` is not a sequence of adapters.
    """
    if not isinstance(extra, Sequence) or not all(isinstance(a, Adapter) for a in extra):
        raise AdapterError(f"adapters={extra!r}: expected a list of kanmeta.Adapter")
    return (*extra, *_registered.values(), *_built_in(), *_entry_points())


def recognise(
    layer: nn.Module, adapters: Sequence[Adapter], *, edge: str = "tap"
) -> tuple[LayerSpec | None, list[str]]:
    """First spec that an adapter gives for ``layer``, and why the closest other one refused.

    Returns:
        ``(spec or None, reasons)``; both empty where no adapter considers the layer's class.
    """
    reasons: list[tuple[int, int, str]] = []
    for adapter in _nearest_class_first(layer, adapters):
        try:
            return describe(adapter, layer, edge), []
        except BrokenLayerError as error:
            return None, [f"{adapter.name}: {error}"]
        except LayoutError as error:
            miss = {CheckFailedError: 0, OtherTensorsError: 2}.get(type(error), 1)
            reasons.append((miss, len(str(error)), f"not {adapter.name}: {error}"))
    # The nearest miss; of several the one with the shortest list of differences.
    return None, [min(reasons)[-1]] if reasons else []


def _nearest_class_first(layer: nn.Module, adapters: Sequence[Adapter]) -> list[Adapter]:
    """Adapters that know a class of ``layer``.

    The built-in ones have no order of their own: the one that knows the nearest class comes first.
    """
    names = [cls.__name__ for cls in type(layer).__mro__]
    considered = [adapter for adapter in adapters if adapter.considers(layer)]
    built_in = [adapter for adapter in considered if adapter in _built_in()]
    nearest = iter(
        sorted(built_in, key=lambda a: min(names.index(n) for n in a.class_names if n in names))
    )
    return [next(nearest) if adapter in built_in else adapter for adapter in considered]


def adapter_for(class_name: str, *, like: str) -> Adapter:
    """Make an adapter for a layer class that is another one's copy under a new name.

    >>> import kanmeta
    >>> mine = kanmeta.adapter_for("MyLinear", like="efficient-kan")
    >>> mine.class_names
    ('MyLinear',)

    Args:
        class_name: name of the class.
        like: name of the adapter whose layers it computes the same as.

    Raises:
        AdapterError: there is no adapter of that name.
    """
    known = {adapter.name: adapter for adapter in all_adapters()}
    if like not in known:
        raise AdapterError(f"no adapter is called {like!r}; there are {', '.join(known)}")
    return replace(known[like], name=f"{like} as {class_name}", class_names=(class_name,))


def lookalikes(layer: nn.Module, adapters: Sequence[Adapter]) -> Iterator[Adapter]:
    """Adapters that do not know the class of ``layer``, but whose tensors it has exactly."""
    if type(layer).__module__.startswith("torch."):
        return
    paths = {path for path, _ in layer.named_parameters(remove_duplicate=False)}
    for adapter in adapters:
        first = next(slot.path for slot in adapter.slots if not slot.optional)
        if first.format(**dict.fromkeys(placeholders(first), 0)) in paths:  # a quick look first
            try:
                describe(adapter, layer, "tap")
            except LayoutError:
                continue
            yield adapter


def container_of(module: nn.Module) -> Container | None:
    """Description of ``module`` as a model whose methods rebuild the layers in it."""
    return next((c for c in _containers() if c.considers(module)), None)
