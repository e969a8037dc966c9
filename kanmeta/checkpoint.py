"""Compact checkpoints: one safetensors file with a versioned JSON header, no pickle.

The file holds the converted model's ``state_dict`` (prompts, meta-learners, what stayed plain) and,
under the metadata key ``"kanmeta"``, how to convert a fresh model of the library to receive it.
"""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kanmeta import header as headers
from kanmeta import registry
from kanmeta.adapter import Adapter
from kanmeta.discovery import refuse_wrapped
from kanmeta.errors import (
    AlreadyConvertedError,
    CheckpointError,
    LayoutError,
    ModelMismatchError,
)
from kanmeta.initialise import LayerInit
from kanmeta.meta import MetaLearner
from kanmeta.spec import LayerSpec, tensor_at
from kanmeta.surgery import bindings, install

__all__ = ["load", "save"]

_CONSTANTS = ("coefficient_scale", "coefficient_offset")

_log = logging.getLogger(__name__)


def save(
    model: nn.Module, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None
) -> None:
    """Write a converted model to one safetensors file.

    Atomic: a file that was at ``path`` is replaced as a whole or, if anything fails, kept.

    Args:
        model: a converted model; not changed.
        path: the file; its folder must exist.
        dtype: what to store floating-point tensors in, e.g. ``torch.float16``; default: as they
            are. The constants scale and offset, a few numbers a layer, are stored as they are.

    Raises:
        NothingToConvertError: the model is not converted.
        SharingError: a meta-learner in use is not part of ``model``.
        CheckpointError: the model's state holds something that is no tensor.
        OSError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))  # follow a link instead of replacing it
    metadata = {"kanmeta": json.dumps(headers.describe(model), separators=(",", ":"))}
    tensors, aliases = _tensors(model, dtype)
    if aliases:
        metadata["aliases"] = json.dumps(aliases, separators=(",", ":"))
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        save_file(tensors, partial, metadata)
        if target.exists():
            shutil.copymode(target, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except SafetensorError as error:  # how safetensors reports a missing folder or a full disk
        raise OSError(f"cannot write {target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    adapters: Sequence[Adapter] = (),
) -> nn.Module:
    """Convert a freshly built model as a checkpoint says, and load the checkpoint into it.

    Args:
        model: the library's own model, of the architecture that was saved, not converted.
        path: a file written by :func:`save`.
        strict: whether tensors outside the converted layers must all match; if not, those that
            do not are left as they are in ``model`` and named in a log warning.
        adapters: asked before all others, as in ``convert``.

    Returns:
        ``model`` itself, converted. Values are cast to its dtypes and devices.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: the file is truncated or damaged.
        ForeignCheckpointError: it is not a kanmeta checkpoint.
        VersionError: it was written by a newer kanmeta.
        ModelMismatchError: it belongs to another model; the message lists every difference.
        AlreadyConvertedError: ``model`` is converted.
        After any error ``model`` is as it was before.
    """
    refuse_wrapped(model)
    if any(True for _ in bindings(model)):
        raise AlreadyConvertedError(
            "load expects a freshly built, unconverted model and converts it itself; build a new "
            "one, or call kanmeta.materialize(model) first"
        )
    header, aliases, shapes = headers.read(Path(path))
    try:
        specs = _match_layers(model, header, adapters)
        skipped = _match_tensors(model, header, specs, {**shapes}, aliases, strict)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"{path} does not belong to this model:\n{error}") from None
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in shapes if name not in skipped}
    tensors |= {alias: tensors[name] for alias, name in aliases.items() if name in tensors}
    _install(model, header, specs, tensors)
    model.load_state_dict(tensors, strict=strict)
    return model


def _tensors(
    model: nn.Module, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Everything to store, each tensor once, and name -> stored name for tied tensors."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    name_of: dict[Tensor, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"the model's state_dict holds {name!r}, a {type(tensor).__name__}; a checkpoint "
                "can only hold tensors. Remove that module's get_extra_state, or store it yourself"
            )
        if name_of.setdefault(tensor, name) != name:
            aliases[name] = name_of[tensor]
            continue
        narrow = dtype is not None and tensor.is_floating_point() and not name.endswith(_CONSTANTS)
        stored = tensor.detach().to("cpu", dtype if narrow else tensor.dtype)
        # A view of somebody else's memory would be refused or stored with all of it.
        tensors[name] = stored.contiguous().clone() if stored._is_view() else stored.contiguous()
    return tensors, aliases


def _match_layers(
    model: nn.Module, header: Mapping[str, Any], adapters: Sequence[Adapter]
) -> list[LayerSpec]:
    """Recognise the layers that the header names in ``model``.

    Raises:
        ModelMismatchError: listing all differences.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    known = {a.name: a for a in reversed(registry.all_adapters(adapters))}
    specs, problems = [], []
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
                spec = adapter.recognise(layer, edge=entry["edge"])
            except LayoutError as error:
                problems.append(f"{name}: expected a layer of {adapter.name}: {error}")
                continue
            found = [*spec.edge_shape, spec.dim_w]
            slots = {s.path: s.tensor.layout for s in spec.slots}
            if found != entry["shape"] or slots != entry["slots"]:
                problems.append(
                    f"{name}: expected (edges, dim_w) {entry['shape']} in {entry['slots']}, "
                    f"found {found} in {slots}"
                )
            specs.append(spec)
    if problems:
        raise ModelMismatchError("\n".join(problems))
    return specs


def _match_tensors(
    model: nn.Module,
    header: Mapping[str, Any],
    specs: Sequence[LayerSpec],
    stored: dict[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    strict: bool,
) -> set[str]:
    """Compare what the converted model will hold with what is stored; return names to skip.

    Raises:
        ModelMismatchError: listing all missing, unexpected and misshapen tensors.
    """
    stored |= {alias: stored[name] for alias, name in aliases.items() if name in stored}
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    ours: dict[str, tuple[int, ...]] = {}
    for entry, spec in zip(header["layers"], specs, strict=True):
        prefix = f"{entry['name']}." if entry["name"] else ""
        for path in spec.paths:
            expected.pop(prefix + path, None)
        meta = header["meta_learners"][entry["meta_learner"]]
        ours[f"{prefix}prompts"] = (*spec.edge_shape, meta["dim_z"])
        ours |= {prefix + constant: (spec.dim_w,) for constant in _CONSTANTS}
    for meta in header["meta_learners"]:
        prefix = f"{meta['layer']}.meta_learner." if meta["layer"] else "meta_learner."
        ours |= {
            f"{prefix}weight1": (meta["hidden"], meta["dim_z"]),
            f"{prefix}weight2": (meta["dim_w"], meta["hidden"]),
        }
        if meta["bias"]:
            ours |= {f"{prefix}bias1": (meta["hidden"],), f"{prefix}bias2": (meta["dim_w"],)}
    expected |= ours
    wrong = {
        name: f"{name}: expected {expected.get(name, 'nothing')}, "
        f"found {stored.get(name, 'nothing')}"
        for name in {**expected, **stored}
        if expected.get(name) != stored.get(name)
    }
    if wrong and (strict or not wrong.keys().isdisjoint(ours)):
        raise ModelMismatchError("\n".join(wrong.values()))
    for text in wrong.values():
        _log.warning("not loaded: %s", text)
    return set(wrong)


def _install(
    model: nn.Module,
    header: Mapping[str, Any],
    specs: Sequence[LayerSpec],
    tensors: Mapping[str, Tensor],
) -> None:
    """Convert ``model`` with the stored prompts; meta-learners are filled by load_state_dict."""
    entries = list(zip(header["layers"], specs, strict=True))
    # The layer that is installed first owns the meta-learner: keep the owner that was stored.
    owners = [meta["layer"] for meta in header["meta_learners"]]
    entries.sort(key=lambda pair: pair[0]["name"] not in owners)
    metas: dict[int, MetaLearner] = {}
    ready = []
    for entry, spec in entries:
        layer = model.get_submodule(entry["name"])
        like = tensor_at(layer, spec.slots[0].path)
        stored = header["meta_learners"][entry["meta_learner"]]
        if entry["meta_learner"] not in metas:
            metas[entry["meta_learner"]] = MetaLearner(
                *(stored[key] for key in ("dim_z", "hidden", "dim_w", "activation", "bias"))
            ).to(like)
        prefix = f"{entry['name']}." if entry["name"] else ""
        first = [tensors[prefix + name] for name in ("prompts", *_CONSTANTS)]
        values = LayerInit(*(t.to(like, copy=True) for t in first))
        meta = metas[entry["meta_learner"]]
        ready.append((entry["name"], layer, spec, values, meta, entry["execution"]))
    install(ready)
