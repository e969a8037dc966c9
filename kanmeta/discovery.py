"""Finding the layers of a model that can be converted, and refusing what cannot be."""

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanmeta import registry
from kanmeta.adapter import Adapter
from kanmeta.converted import ConvertedLayer
from kanmeta.errors import (
    AlreadyConvertedError,
    NothingToConvertError,
    PlanError,
    WrappedModelError,
)
from kanmeta.spec import ADDED, LayerSpec, tensor_at

__all__ = ["Filter", "Found", "find_layers", "refuse_conflicts", "refuse_wrapped"]

Filter = str | Sequence[str] | Callable[[str, nn.Module], bool]
"""Glob pattern(s) over layer names (``"encoder.*"``), or ``(name, layer) -> bool``."""


def refuse_wrapped(model: nn.Module) -> None:
    """Raise WrappedModelError if the model, or a part of it, is wrapped or compiled already."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    for name, module in model.named_modules():
        kind = type(module).__name__
        if hasattr(module, "_orig_mod"):
            fix = "compiled. Convert the module that torch.compile was given (._orig_mod)"
        elif getattr(module, "_compiled_call_impl", None) is not None:
            fix = "compiled in place. Convert a model on which .compile() was not called yet"
        elif isinstance(module, parallel):
            fix = (
                "wrapped for parallel training. Convert the module inside (.module; converted "
                "models need DistributedDataParallel, not DataParallel)"
            )
        elif kind.startswith("FSDP") or kind == "FullyShardedDataParallel":
            fix = "sharded. Convert the model before it is sharded"
        elif isinstance(module, torch.jit.ScriptModule):
            fix = "TorchScript. Convert the Python module it was made from"
        else:
            continue
        raise WrappedModelError(f"{name or 'the model'} ({kind}) is {fix}, then wrap it again.")


@dataclass(frozen=True)
class Found:
    """A layer to convert, all names it is registered under (the first is its name), its spec."""

    names: tuple[str, ...]
    layer: nn.Module
    spec: LayerSpec


def find_layers(
    model: nn.Module,
    adapters: Sequence[Adapter],
    edge: str,
    include: Filter | None,
    exclude: Filter | None,
) -> tuple[list[Found], list[str]]:
    """Return the layers to convert, in the order of registration, and notes on those that are not.

    A note is the name of a layer, its class, and why it stays.

    Raises:
        AlreadyConvertedError: one of them is converted already.
        NothingToConvertError: there is none.
        PlanError: a pattern of ``include`` or ``exclude`` matches nothing.
    """
    names_of: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names_of.setdefault(module, []).append(name)
    chosen = set(names_of) if include is None else _chosen("include", include, names_of)
    chosen -= set() if exclude is None else _chosen("exclude", exclude, names_of)

    found: list[Found] = []
    converted: list[str] = []
    refused: dict[str, list[str]] = {}
    left_out: list[str] = []
    # Of a library that is known, so is what stays: pykan's Symbolic_KANLayer.
    models = [module for module in names_of if registry.container_of(module) is not None]
    part_of_a_model = {part for module in models for part in module.modules()}
    for module, names in names_of.items():
        if isinstance(module, ConvertedLayer):
            converted += [names[0]] if module in chosen else []
            continue
        spec, reasons = registry.recognise(module, adapters, edge=edge)
        if spec is None:
            reasons = reasons or _suggestions(module, adapters)
            if module in chosen and (reasons or "kan" in type(module).__name__.lower()):
                weights = any(p.dim() > 1 for p in module.parameters(recurse=False))
                if not reasons and weights and module not in part_of_a_model:
                    reasons = ["no adapter knows this class; describe it with a kanmeta.Adapter"]
                refused[names[0]] = [type(module).__name__, *reasons]
        elif not spec.slots:
            refused[names[0]] = [type(module).__name__, *spec.notes]
        elif module in chosen:
            found.append(Found(tuple(names), module, spec))
        else:
            left_out.append(names[0])
    known = {item.layer for item in found} | {m for m in names_of if isinstance(m, ConvertedLayer)}
    for name in list(refused):  # a network called KANLayer that holds KAN layers is none itself
        if not known.isdisjoint(model.get_submodule(name).modules()):
            del refused[name]
    if converted:
        raise AlreadyConvertedError(
            f"converted already: {', '.join(n or '(root)' for n in converted)}. To convert with "
            "other settings call kanmeta.materialize(model) first; to convert further layers "
            "only, leave these out with exclude=."
        )
    if not found:
        raise NothingToConvertError(_nothing_found(len(names_of), refused, left_out, adapters))
    notes = [
        f"{name or '(root)'} ({cls}): {'; '.join(reasons)}"
        for name, (cls, *reasons) in refused.items()
        if reasons
    ]
    return found, notes


def _suggestions(layer: nn.Module, adapters: Sequence[Adapter]) -> list[str]:
    """What to do about a layer of an unknown class that has the tensors of a known one."""
    cls = type(layer).__name__
    return [
        f"has the tensors of {adapter.name} ({'/'.join(adapter.class_names)}); if it computes the "
        f"same, pass adapters=[kanmeta.adapter_for({cls!r}, like={adapter.name!r})]"
        for adapter in registry.lookalikes(layer, adapters)
    ]


def _chosen(
    argument: str, given: Filter, names_of: Mapping[nn.Module, Sequence[str]]
) -> set[nn.Module]:
    """Modules that a filter selects; a pattern selects what is below a matching module too."""
    if callable(given):
        return {m for m, names in names_of.items() if any(given(name, m) for name in names)}
    selected: set[nn.Module] = set()
    for pattern in [given] if isinstance(given, str) else given:
        hits = {
            module
            for module, names in names_of.items()
            if any(fnmatch.fnmatchcase(above, pattern) for n in names for above in _path(n))
        }
        if not hits:
            every = [name for names in names_of.values() for name in names]
            close = difflib.get_close_matches(pattern, every, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise PlanError(f"{argument}={pattern!r} matches no module of the model.{hint}")
        selected |= hits
    return selected


def _path(name: str) -> list[str]:
    """Name of a module and of the modules above it, the root excepted: a.b gives [a, a.b]."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _nothing_found(
    seen: int,
    refused: Mapping[str, Sequence[str]],
    left_out: Sequence[str],
    adapters: Sequence[Adapter],
) -> str:
    lines = [f"no layer to convert among {seen} module(s)."]
    if left_out:
        lines.append(
            f"Left out by include= and exclude=: {', '.join(n or '(root)' for n in left_out)}."
        )
        return " ".join(lines)
    if refused:
        lines.append("These look like KAN layers, but no adapter recognises them:")
        for name, (cls, *reasons) in list(refused.items())[:10]:
            lines.append(f"  {name or '(root)'}: {cls} {'; '.join(reasons)}".rstrip())
    classes: dict[str, list[str]] = {}  # of each library
    for adapter in adapters:
        classes.setdefault(adapter.name.partition("/")[0], []).extend(adapter.class_names)
    known = [f"{name} ({', '.join(dict.fromkeys(names))})" for name, names in classes.items()]
    lines.append(
        f"Known: {'; '.join(known)}. For a layer class of your own, pass "
        "adapters=[kanmeta.Adapter(...)]."
    )
    return "\n".join(lines)


def refuse_conflicts(model: nn.Module, found: Sequence[Found]) -> None:
    """Raise PlanError for layers of ``model`` whose conversion would break something."""
    owner: dict[Tensor, str] = {}
    places: set[tuple[nn.Module, str]] = set()
    for item in found:
        layer, spec = item.layer, item.spec
        label = item.names[0] or "(root)"
        taken = [name for name in ADDED if hasattr(layer, name)]
        if taken:
            raise PlanError(
                f"{label} ({type(layer).__name__}) has the attribute(s) {', '.join(taken)} "
                "already, which a converted layer needs; rename them or exclude the layer"
            )
        for path in spec.paths:
            tensor = tensor_at(layer, path)
            if tensor.is_meta:
                raise PlanError(
                    f"{label}.{path} is on the meta device; give the model real tensors first "
                    "(model.to_empty(device=...) and its reset_parameters)"
                )
            if not tensor.is_floating_point() or type(tensor) is not nn.Parameter:
                raise PlanError(
                    f"{label}.{path} is a {type(tensor).__name__} of {tensor.dtype}; expected a "
                    "floating-point nn.Parameter. Convert before quantising, sharding or "
                    "parametrising the model"
                )
            if tensor in owner:
                raise PlanError(_tied(f"{label}.{path}", owner[tensor]))
            owner[tensor] = f"{label}.{path}"
            prefix, _, attribute = path.rpartition(".")
            places.add((layer.get_submodule(prefix), attribute))
    for name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter in owner and (module, attribute) not in places:
                raise PlanError(_tied(f"{name}.{attribute}", owner[parameter]))


def _tied(first: str, second: str) -> str:
    return (
        f"{first} and {second} are one Parameter; conversion would untie them. Use one layer "
        "object twice instead of tying, or leave the layers out with exclude="
    )
