"""Which adapters there are, and which one recognises a layer.

Asked in this order, first match wins: adapters passed to ``convert``, adapters registered with
:func:`register_adapter`, the built-in ones, then those that installed packages offer through the
entry point group ``kanmeta.adapters``.
"""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Sequence
from functools import cache

from torch import nn

from kanmeta.adapter import Adapter
from kanmeta.errors import AdapterError, LayoutError
from kanmeta.spec import LayerSpec

__all__ = ["all_adapters", "recognise", "register_adapter"]

_registered: dict[str, Adapter] = {}


def register_adapter(adapter: Adapter) -> Adapter:
    """Add ``adapter`` for the rest of the process; it is asked before the built-in ones.

    Returns:
        The adapter itself.

    Raises:
        AdapterError: an adapter of this name exists already.
    """
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
def _built_in() -> tuple[Adapter, ...]:
    package = importlib.import_module("kanmeta.adapters")
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    return tuple(
        adapter
        for name in modules
        for adapter in importlib.import_module(f"{package.__name__}.{name}").ADAPTERS
    )


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
    """All adapters in the order in which they are asked."""
    return (*extra, *_registered.values(), *_built_in(), *_entry_points())


def recognise(
    layer: nn.Module, adapters: Sequence[Adapter], *, edge: str = "tap"
) -> tuple[LayerSpec | None, list[str]]:
    """First spec that an adapter gives for ``layer``, and why others that considered it refused.

    Returns:
        ``(spec or None, reasons)``; both empty where no adapter considers the layer's class.
    """
    reasons: list[str] = []
    for adapter in adapters:
        if adapter.considers(layer):
            try:
                return adapter.recognise(layer, edge=edge), reasons
            except LayoutError as error:
                reasons.append(f"not {adapter.name}: {error}")
    return None, reasons
