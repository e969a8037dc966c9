"""What a library keeps outside ``state_dict`` and a checkpoint must hold all the same.

Settings of a layer on which its function depends (the kind of wavelet): stored and compared.
Grids in plain attributes that a grid update has moved: stored and restored. What a model knows
besides its layers (pykan's symbolic functions): its container says how to store and restore it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from kanmeta import registry
from kanmeta.binding import Binding
from kanmeta.errors import ModelMismatchError

__all__ = ["container_states", "moved_attributes", "restore_containers", "settings_of"]

Setting = str | float | bool | None


def settings_of(layer: nn.Module, paths: Sequence[str]) -> dict[str, Setting]:
    """Settings of a layer by their paths; modules and functions by their names."""
    return {path: _plain(attrgetter(path)(layer)) for path in paths if _has(layer, path)}


def _has(layer: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(layer)
    except AttributeError:
        return False
    return True


def _plain(value: object) -> Setting:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Module):
        return type(value).__name__
    return str(getattr(value, "__name__", type(value).__name__))


def moved_attributes(binding: Binding) -> dict[str, Tensor]:
    """Tensors in plain attributes of a layer, such as knots, that grid updates have moved."""
    if binding.map is None:
        return {}
    return {name: value for name, value in vars(binding.layer).items() if isinstance(value, Tensor)}


def container_states(model: nn.Module) -> list[dict[str, Any]]:
    """Name and state of every model of a library in ``model`` that has one to store."""
    found = []
    for name, module in model.named_modules():
        container = registry.container_of(module)
        if container is not None and container.store is not None:
            found.append({"name": name, "state": container.store(module)})
    return found


def restore_containers(model: nn.Module, states: Sequence[Mapping[str, Any]]) -> Callable[[], None]:
    """Give the models of a library in ``model`` what :func:`container_states` stored.

    Returns:
        A function that undoes it; Parameters and buffers are the caller's to put back.

    Raises:
        ModelMismatchError: there is no such model, or the state is not one for it.
    """
    modules = dict(model.named_modules())
    with ExitStack() as undo:
        for entry in states:
            name, state = entry["name"], entry["state"]
            module = modules.get(name)
            container = None if module is None else registry.container_of(module)
            if module is None or container is None or container.restore is None:
                raise ModelMismatchError(f"{name or '(root)'}: expected a model like the one saved")
            try:
                undo.callback(container.restore(module, state))
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ModelMismatchError(
                    f"{name or '(root)'} ({container.name}): cannot restore {state}: {error!r}"
                ) from error
        return undo.pop_all().close
