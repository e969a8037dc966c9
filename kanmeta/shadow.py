"""Running a layer's own forward on other tensors than those it holds, without touching the layer.

A shadow is a copy of a layer and its children that shares everything with them but the tensors that
are put in their place. The layer itself may be in use, in another thread or with other tensors
(``functional_call``), while the shadow of an earlier forward is run again in backward.
"""

import fnmatch
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from kanmeta.errors import ExecutionError
from kanmeta.spec import ADDED, LayerSpec

__all__ = ["Shadow", "has_hooks", "rows_are_mixed"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Generated:
    """Stands in for the binding in a shadow: generated tensors by path."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, path: str) -> Tensor:
        return self._tensors[path]

    def label(self, path: str) -> str:
        return path

    def is_reading(self, path: str, value: object) -> bool:
        return value is self._tensors.get(path)

    def __getattr__(self, name: str) -> object:
        raise ExecutionError(
            "this layer changes its coefficients or its grid while it runs, which cannot be done "
            "in blocks of rows. Choose kanmeta.set_execution(model, 'regenerate', layers=...)"
        )


class Shadow:
    """A layer as it is now: its attributes, its modes, and which tensors it reads.

    Attributes:
        tensors: Parameters, buffers, and other attributes that require a gradient; each once.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Take a copy of the structure of ``layer``, with its own tensors."""
        found: dict[int, Tensor] = {}
        self._layer = _copy(layer, {}, None, found, {})
        self.tensors = tuple(found.values())

    def layer(self, tensors: Sequence[Tensor], generated: Mapping[str, Tensor]) -> nn.Module:
        """Copy of the layer with other ``tensors`` and with these generated ones, by path."""
        replaced = {id(old): new for old, new in zip(self.tensors, tensors, strict=True)}
        return _copy(self._layer, replaced, _Generated(generated), {}, {})


def _copy(
    module: nn.Module,
    replaced: Mapping[int, Tensor],
    generated: _Generated | None,
    found: dict[int, Tensor],
    copies: dict[nn.Module, nn.Module],
) -> nn.Module:
    if module in copies:
        return copies[module]
    copy: nn.Module = object.__new__(type(module))
    copies[module] = copy
    values = dict(module.__dict__)
    for kind in ("_parameters", "_buffers"):
        values[kind] = {}
        for name, tensor in module.__dict__[kind].items():
            if name not in ADDED or "_kanmeta" not in values:
                values[kind][name] = tensor if tensor is None else replaced.get(id(tensor), tensor)
                if tensor is not None:
                    found[id(tensor)] = tensor
    for name, value in values.items():
        if isinstance(value, Tensor) and value.requires_grad:
            found[id(value)] = value
            values[name] = replaced.get(id(value), value)
    values["_modules"] = {
        name: child if child is None else _copy(child, replaced, generated, found, copies)
        for name, child in module._modules.items()
        if name not in ADDED or "_kanmeta" not in values
    }
    if generated is not None and "_kanmeta" in values:
        values["_kanmeta"] = generated
    copy.__dict__.update(values)
    return copy


def rows_are_mixed(layer: nn.Module, spec: LayerSpec) -> str | None:
    """Why the forward of ``layer``, as it is now, cannot be run in blocks of rows; None if it can.

    A module that the user chose (a norm, an activation) is trusted if it is one of torch.nn.
    """
    if spec.rows == "never":
        return f"{spec.class_name} computes each row from all rows of its input"
    if spec.rows == "eval" and layer.training:
        return f"{spec.class_name} mixes rows in training mode"
    for name, module in layer.named_modules():
        kind = type(module).__name__
        if _uses_statistics(module):
            return f"{name} ({kind}) uses or keeps statistics of the batch"
        home = type(module).__module__
        if any(fnmatch.fnmatchcase(f"{name}.", pattern) for pattern in spec.free) and not (
            home.startswith("torch.nn.")
        ):
            return f"it is not known whether {name} ({kind}) treats rows independently"
        if module is not layer and any(vars(module)[kind] for kind in _HOOKS):
            return f"{name} ({kind}) has hooks, which would see blocks of rows"
        if (method := patched(module, layer)) is not None:
            return f"{method} of {name or 'the layer'} ({kind}) was replaced on this object alone"
        if home.startswith("torch.jit"):
            return f"{name} ({kind}) is a compiled module"
    return None


def patched(module: nn.Module, layer: nn.Module) -> str | None:
    """Name of a method that was replaced on ``module``, not on its class; None if there is none.

    It holds on to the tensors of this very object, so a :class:`Shadow` cannot have it. The forward
    of ``layer``, around which others put theirs, is not asked for.
    """
    for name, value in vars(module).items():
        if module is layer and name == "forward":
            continue
        if callable(value) and callable(getattr(type(module), name, None)):
            return name
    return None


def has_hooks(layer: nn.Module) -> bool:
    """Whether somebody looks into ``layer``: hooks on modules inside, methods that are replaced."""
    inner = (module for module in layer.modules() if module is not layer)
    return any(vars(module)[kind] for module in inner for kind in _HOOKS) or any(
        patched(module, layer) is not None for module in layer.modules()
    )


def _uses_statistics(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return module.training or module.running_mean is None
    return isinstance(module, _NormBase) and module.training and module.track_running_stats
