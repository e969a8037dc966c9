"""Fitting a stored conversion to a freshly built model: what matches, and what to install."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import registry
from kanmeta.adapter import Adapter
from kanmeta.discovery import Found
from kanmeta.errors import CorruptCheckpointError, LayoutError, ModelMismatchError
from kanmeta.extra_state import settings_of
from kanmeta.initialise import LayerInit
from kanmeta.meta import MetaLearner
from kanmeta.recognition import describe, without_dead
from kanmeta.spec import CONSTANTS, tensor_at
from kanmeta.surgery import Installation

__all__ = [
    "attributes",
    "containers_tensors",
    "copies",
    "expected_shapes",
    "installations",
    "loading_by_themselves",
    "match_layers",
]

Shapes = dict[str, tuple[int, ...]]


def match_layers(
    model: nn.Module, header: Mapping[str, Any], adapters: Sequence[Adapter]
) -> list[Found]:
    """Recognise, in ``model``, the layers that the header names, in its order.

    Raises:
        ModelMismatchError: listing all differences.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    known = {a.name: a for a in reversed(registry.all_adapters(adapters))}
    found_layers: list[Found] = []
    problems: list[str] = []
    for entry in header["layers"]:
        name = entry["name"] or "(root)"
        if entry["name"] not in modules:
            problems.append(f"{name}: expected a KAN layer, found no such module")
        elif entry["adapter"] not in known:
            problems.append(
                f"{name}: was converted with the adapter {entry['adapter']!r}, which is not known "
                "here; pass it to load(..., adapters=[...])"
            )
        else:
            layer, adapter = modules[entry["name"]], known[entry["adapter"]]
            try:
                if not adapter.considers(layer):
                    raise LayoutError(f"its class is {type(layer).__name__}")
                spec = describe(adapter, layer, entry["edge"])
                spec = without_dead(spec, layer) if entry["dropped"] else spec
            except LayoutError as error:
                problems.append(f"{name}: expected a layer of {adapter.name}: {error}")
                continue
            found = [*spec.edge_shape, spec.dim_w]
            slots = {s.path: s.tensor.layout for s in spec.slots}
            settings = settings_of(layer, spec.settings)
            if settings != entry["settings"]:
                problems.append(f"{name}: expected {entry['settings']}, found {settings}")
            same = [*spec.dropped] == entry["dropped"]
            if found != entry["shape"] or slots != entry["slots"] or not same:
                problems.append(
                    f"{name}: expected (edges, dim_w) {entry['shape']} in {entry['slots']}, "
                    f"found {found} in {slots} (a tensor that is frozen, requires_grad=False, is "
                    "not converted)"
                )
            found_layers.append(Found((entry["name"],), layer, spec))
    if problems:
        raise ModelMismatchError("\n".join(problems))
    return found_layers


def _plain_tensors(model: nn.Module, found: Sequence[Found]) -> dict[str, Tensor]:
    """Tensors in the state_dict of ``model`` that converting ``found`` does not replace."""
    replaced = {tensor_at(item.layer, path) for item in found for path in item.spec.paths}
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and tensor not in replaced
    }


def expected_shapes(
    model: nn.Module, header: Mapping[str, Any], found: Sequence[Found]
) -> tuple[Shapes, Shapes]:
    """Names and shapes that the state_dict of ``model`` will have once it is converted.

    Returns:
        (what the conversion adds, what was there before and stays); a layer that is registered
        under several names appears under each.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(f"{name}." if name else "")
    stay = {name: tuple(tensor.shape) for name, tensor in _plain_tensors(model, found).items()}
    added: Shapes = {}
    layer_of = {item.names[0]: item.layer for item in found}
    for entry, item in zip(header["layers"], found, strict=True):
        dim_z = header["meta_learners"][entry["meta_learner"]]["dim_z"]
        for prefix in names[item.layer]:
            added[f"{prefix}prompts"] = (*item.spec.edge_shape, dim_z)
            added |= {f"{prefix}coefficient_{c}": (item.spec.dim_w,) for c in ("scale", "offset")}
            if entry["mapped"]:
                added[f"{prefix}coefficient_map"] = item.spec.map_shape
            for attribute in entry["attributes"]:
                value = vars(item.layer).get(attribute)
                if not isinstance(value, Tensor):
                    raise ModelMismatchError(f"{prefix}{attribute}: expected a tensor, found none")
                added[f"{prefix}{attribute}"] = tuple(value.shape)
    for meta in header["meta_learners"]:
        for prefix in names[layer_of[meta["layer"]]]:
            prefix = f"{prefix}meta_learner."
            added[f"{prefix}weight1"] = (meta["hidden"], meta["dim_z"])
            added[f"{prefix}weight2"] = (meta["dim_w"], meta["hidden"])
            if meta["bias"]:
                added[f"{prefix}bias1"] = (meta["hidden"],)
                added[f"{prefix}bias2"] = (meta["dim_w"],)
    return added, stay


def installations(
    header: Mapping[str, Any], found: Sequence[Found], tensors: Mapping[str, Tensor]
) -> list[Installation]:
    """Conversion of each layer with its stored prompts; meta-learners are still empty.

    The layer that owns a meta-learner comes before the others that use it.

    Raises:
        CorruptCheckpointError: prompts or constants are no floating-point numbers.
    """
    entries = list(zip(header["layers"], found, strict=True))
    owners = [meta["layer"] for meta in header["meta_learners"]]
    entries.sort(key=lambda pair: pair[0]["name"] not in owners)
    metas: dict[int, MetaLearner] = {}
    ready: list[Installation] = []
    for entry, item in entries:
        like = tensor_at(item.layer, item.spec.slots[0].paths[0])
        stored = header["meta_learners"][entry["meta_learner"]]
        if entry["meta_learner"] not in metas:
            with torch.device("cpu"):
                meta = MetaLearner(
                    *(stored[key] for key in ("dim_z", "hidden", "dim_w", "activation", "bias"))
                )
            metas[entry["meta_learner"]] = meta.to(like)
        prefix = f"{entry['name']}." if entry["name"] else ""
        names = ["prompts", *CONSTANTS[: 3 if entry["mapped"] else 2]]
        first = [tensors[prefix + name] for name in names]
        if not all(t.is_floating_point() for t in first):
            raise CorruptCheckpointError(
                f"prompts or constants of {entry['name'] or '(root)'} are stored as "
                f"{', '.join(str(t.dtype) for t in first)}; expected floating-point numbers"
            )
        values = LayerInit(*(t.to(like, copy=True) for t in first))
        meta = metas[entry["meta_learner"]]
        ready.append((entry["name"], item.layer, item.spec, values, meta, entry["execution"]))
    return ready


def attributes(
    header: Mapping[str, Any], found: Sequence[Found], tensors: dict[str, Tensor]
) -> list[tuple[nn.Module, str, Tensor]]:
    """Take what belongs into plain attributes out of ``tensors``: (layer, attribute, value)."""
    values = []
    for entry, item in zip(header["layers"], found, strict=True):
        prefix = f"{entry['name']}." if entry["name"] else ""
        for attribute in entry["attributes"]:
            like = vars(item.layer)[attribute]
            values.append((item.layer, attribute, tensors.pop(prefix + attribute).to(like)))
    return values


def copies(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pair every tensor in the state_dict of ``module`` with a copy."""
    tensors = module.state_dict(keep_vars=True).values()
    return [(t, t.detach().clone()) for t in tensors if isinstance(t, Tensor)]


def containers_tensors(model: nn.Module, header: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Copy the tensors of the models of a library whose own state is about to be restored."""
    modules = dict(model.named_modules())
    names = [entry["name"] for entry in header["containers"] if entry["name"] in modules]
    return [pair for name in names for pair in copies(modules[name])]


def loading_by_themselves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Prefixes and modules of a user's or a library's whose code runs when they are loaded.

    Only the outermost. Modules of torch copy numbers.
    """
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        kind = getattr(type(module), "_original", type(module))
        methods = ("_load_from_state_dict", "load_state_dict", "set_extra_state")
        own = any(getattr(kind, m) is not getattr(nn.Module, m) for m in methods)
        hooks = module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks
        prefix = f"{name}." if name else ""
        inside = any(prefix.startswith(outer) for outer, _ in found)
        if (hooks or (own and not kind.__module__.startswith("torch."))) and not inside:
            found.append((prefix, module))
    return found
