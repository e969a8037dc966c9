"""Compact checkpoints: one safetensors file with a versioned JSON header, no pickle.

The file holds the converted model's ``state_dict`` (prompts, meta-learners, what stayed plain) and,
under the metadata key ``"kanmeta"``, how to convert a fresh model of the library to receive it.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kanmeta import archive, restore, writable
from kanmeta import header as headers
from kanmeta.adapter import Adapter
from kanmeta.atomic import replacing
from kanmeta.codebook import BITS
from kanmeta.discovery import refuse_conflicts, refuse_wrapped
from kanmeta.errors import (
    AlreadyConvertedError,
    CheckpointError,
    CorruptCheckpointError,
    ModelMismatchError,
)
from kanmeta.extra_state import moved_attributes, restore_containers
from kanmeta.prompt_bits import check_bits, decode, decoded_shapes, encode
from kanmeta.shards import gathered, is_sharded
from kanmeta.spec import CONSTANTS
from kanmeta.surgery import bindings, install, install_containers, is_converted
from kanmeta.transfer import put_back

__all__ = ["load", "save"]

_log = logging.getLogger(__name__)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    prompt_bits: int | None = None,
) -> None:
    """Write a converted model to one safetensors file.

    >>> kanmeta.save(kanmeta.convert(KAN([64, 32, 10])), "kan.safetensors", prompt_bits=4)

    Atomic: a file that was at ``path`` is replaced as a whole or, if anything fails, kept. A model
    that is sharded (FSDP2) is gathered: call it on every rank, the first one writes.

    Args:
        model: a converted model; not changed.
        path: the file; its folder must exist.
        dtype: what to store floating-point tensors in, e.g. ``torch.float16``; default: as they
            are. The constants scale and offset, a few numbers a layer, are stored as they are.
        prompt_bits: 8, 4, 3 or 2: prompts become codes of so many bits, with an optimal codebook
            for each layer and each number of a prompt, and the file is compressed as a whole.
            Layers of fewer edges may get longer codebooks, whose codes take a few bits more.
            16: prompts are stored as float16. Default: as ``dtype`` says.

    Raises:
        NothingToConvertError: the model is not converted.
        SharingError: a meta-learner in use is not part of ``model``.
        CheckpointError: ``dtype`` is no floating-point type, ``prompt_bits`` is another number or
            too few for prompts that are not finite, prompts are pruned or parametrised, or the
            model's state holds something that is no tensor.
        OSError: the file cannot be written.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CheckpointError(
            f"dtype={dtype!r}: expected a floating-point torch.dtype such as torch.float16, or None"
        )
    check_bits(prompt_bits)
    coded = prompt_bits in BITS
    described = headers.describe(model, prompt_bits if coded else None)
    metadata = {"kanmeta": json.dumps(described, separators=(",", ":"))}
    tensors, aliases = _tensors(model, dtype)
    if prompt_bits is not None:
        prompts = {f"{n}.prompts".lstrip("."): gathered(b.prompts) for n, b in bindings(model)}
        encode(tensors, prompts, prompt_bits, dtype)
    if aliases:
        metadata["aliases"] = json.dumps(aliases, separators=(",", ":"))
    if any(map(is_sharded, model.parameters())) and torch.distributed.get_rank() > 0:
        return
    outer = json.dumps({key: described[key] for key in ("format", "kanmeta")})
    with replacing(path) as new:
        if coded:
            archive.write(tensors, metadata, new, outer)
        else:
            save_file(tensors, new, metadata)


def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    adapters: Sequence[Adapter] = (),
) -> nn.Module:
    """Convert a freshly built model as a checkpoint says, and load the checkpoint into it.

    >>> model = kanmeta.convert(KAN([64, 32, 10]))
    >>> kanmeta.save(model, "kan.safetensors")
    >>> same = kanmeta.load(KAN([64, 32, 10]), "kan.safetensors")
    >>> torch.equal(same(torch.ones(2, 64)), model(torch.ones(2, 64)))
    True

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
        After any error ``model`` is as it was before; only an interruption (Ctrl-C) while the last
        plain tensors are copied leaves some of them new.
    """
    refuse_wrapped(model)
    if is_converted(model):
        raise AlreadyConvertedError(
            "load expects a freshly built, unconverted model and converts it itself; build a new "
            "one, or call kanmeta.materialize(model) first"
        )
    with _named(path, headers.DAMAGE):
        header, aliases, stored, packed = headers.read(Path(path))
        shapes = decoded_shapes(header, stored)
    try:
        found = restore.match_layers(model, header, adapters)
        refuse_conflicts(model, found)
        skipped = _compare(restore.expected_shapes(model, header, found), shapes, aliases, strict)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"{path} does not belong to this model:\n{error}") from None
    with _named(path, headers.DAMAGE):
        if packed is not None:
            tensors = archive.content(Path(path), *packed)
            decode(header, tensors)
            tensors = {name: tensor for name, tensor in tensors.items() if name not in skipped}
        else:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in shapes if name not in skipped}
        tensors |= {alias: tensors[name] for alias, name in aliases.items() if name in tensors}
        ready = restore.installations(header, found, tensors)
        writable.check_types(model, tensors)
    attributes = restore.attributes(header, found, tensors)
    with _named(path), ExitStack() as undo:
        undo.callback(install(ready))
        undo.callback(install_containers(model, header["frozen"]))
        writable.check_memory(model, tensors)
        undo.callback(put_back, restore.containers_tensors(model, header))
        undo.callback(restore_containers(model, header["containers"]))
        for layer, name, value in attributes:
            undo.callback(setattr, layer, name, vars(layer)[name])
            setattr(layer, name, value)
        for prefix, module in restore.loading_by_themselves(model):  # and so may refuse
            undo.callback(put_back, restore.copies(module))
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            module.load_state_dict(own, strict=strict)
        model.load_state_dict(tensors, strict=strict)  # copies numbers, which was checked
        undo.pop_all()
    return model


@contextmanager
def _named(
    path: str | os.PathLike[str], damage: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Say in every error of ours which file it is about; ``damage`` are others that it causes."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except damage as error:
        raise CorruptCheckpointError(f"{path} is damaged: {error!r}") from error


def _compare(
    expected: tuple[restore.Shapes, restore.Shapes],
    shapes: restore.Shapes,
    aliases: Mapping[str, str],
    strict: bool,
) -> set[str]:
    """Return names of stored tensors to leave out.

    Raises:
        ModelMismatchError: listing all missing, unexpected and misshapen tensors.
    """
    added, stay = expected
    want = stay | added
    stored = shapes | {alias: shapes[name] for alias, name in aliases.items() if name in shapes}
    wrong = {
        name: f"{name}: expected {want.get(name, 'nothing')}, found {stored.get(name, 'nothing')}"
        for name in want | stored
        if want.get(name) != stored.get(name)
    }
    if wrong and (strict or not wrong.keys().isdisjoint(added)):
        raise ModelMismatchError("\n".join(wrong.values()))
    for text in wrong.values():
        _log.warning("not loaded: %s", text)
    return set(wrong)


def _tensors(
    model: nn.Module, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Everything to store, each tensor once, and name -> stored name for tied tensors."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    name_of: dict[Tensor, str] = {}
    state = dict(model.state_dict(keep_vars=True))
    for layer_name, binding in bindings(model):
        prefix = f"{layer_name}." if layer_name else ""
        if "prompts" not in vars(binding.layer)["_parameters"]:
            raise CheckpointError(
                f"{prefix}prompts are pruned or parametrised, which no file can tell: call "
                "torch.nn.utils.prune.remove, parametrize.remove_parametrizations or "
                "remove_weight_norm first, whichever takes it back"
            )
        state |= {prefix + name: value for name, value in moved_attributes(binding).items()}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"the model's state_dict holds {name!r}, a {type(tensor).__name__}; a checkpoint "
                "can only hold tensors. Remove that module's get_extra_state, or store it yourself"
            )
        if name_of.setdefault(tensor, name) != name:
            aliases[name] = name_of[tensor]
            continue
        narrow = dtype is not None and tensor.is_floating_point() and not name.endswith(CONSTANTS)
        stored = gathered(tensor.detach()).to("cpu", dtype if narrow else tensor.dtype)
        # A view of somebody else's memory would be refused or stored with all of it.
        tensors[name] = stored.contiguous().clone() if stored._is_view() else stored.contiguous()
    return tensors, aliases
