"""The JSON header of a checkpoint: how to convert a fresh model so that the tensors fit.

Stored in the safetensors metadata under ``"kanmeta"``; ``"aliases"`` beside it names tied tensors.
"""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import nn

from kanmeta import archive
from kanmeta.access import complete_layers, meta_learners
from kanmeta.codebook import BITS
from kanmeta.errors import (
    CorruptCheckpointError,
    ForeignCheckpointError,
    VersionError,
)
from kanmeta.extra_state import container_states, moved_attributes, settings_of
from kanmeta.meta import ACTIVATIONS
from kanmeta.policy import EXECUTIONS
from kanmeta.surgery import FROZEN

__all__ = ["DAMAGE", "FORMAT", "Header", "describe", "read"]

FORMAT = 3
"""Newest version of the header. Files without codes are written in version 1: all can read it."""

_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit

DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, SafetensorError),
    RecursionError,  # brackets in brackets
)
"""What reading JSON that nobody wrote for us may raise."""


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        conversion: see :func:`describe`.
        aliases: name -> stored name, for tensors of the model that are one and the same.
        shapes: stored name -> shape.
        archive: where the tensor that holds the others begins and how many bytes they are; None
            where they lie in the file itself. See :mod:`kanmeta.archive`.
    """

    conversion: dict[str, Any]
    aliases: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    archive: tuple[int, int] | None = None


def describe(model: nn.Module, prompt_bits: int | None = None) -> dict[str, Any]:
    """Return the JSON object that says how ``model`` was converted.

    Args:
        model: a converted model.
        prompt_bits: width of the codes that stand for prompts, if they do.
    """
    layers = complete_layers(model)
    metas = meta_learners(model)
    index = {meta: number for number, meta in enumerate(metas.values())}
    coded = {} if prompt_bits is None else {"prompt_bits": prompt_bits}
    return {
        "format": 1 if prompt_bits is None else FORMAT,
        "kanmeta": version("kanmeta"),
        **coded,
        "meta_learners": [
            {
                "layer": owner,
                "dim_z": meta.dim_z,
                "hidden": meta.hidden,
                "dim_w": meta.dim_w,
                "activation": meta.activation,
                "bias": meta.has_bias,
            }
            for owner, meta in metas.items()
        ],
        "layers": [
            {
                "name": name,
                "adapter": binding.spec.adapter,
                "edge": binding.spec.edge,
                "execution": binding.execution,
                "meta_learner": index[binding.meta_learner],
                "shape": [*binding.spec.edge_shape, binding.spec.dim_w],
                "slots": {s.path: s.tensor.layout for s in binding.spec.slots},
                "mapped": binding.map is not None,
                "dropped": [*binding.spec.dropped],
                "settings": settings_of(binding.layer, binding.spec.settings),
                "attributes": [*moved_attributes(binding)],
            }
            for name, binding in layers.items()
        ],
        "frozen": any(vars(module).get(FROZEN) for module in model.modules()),
        "containers": container_states(model),
    }


def read(path: Path) -> Header:
    """Read and check the header; the size of the file is checked against it.

    Raises:
        FileNotFoundError, CorruptCheckpointError, ForeignCheckpointError, VersionError: see
            :func:`kanmeta.load`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = file.read(min(length, _LARGEST_HEADER))
    if size < 10 or length > _LARGEST_HEADER or not start.startswith(b"{"):
        raise ForeignCheckpointError(
            f"{path} is not a safetensors file ({size} bytes). Expected a file written by "
            "kanmeta.save; load files of other formats before you convert the model"
        )
    if size < 8 + length:
        raise CorruptCheckpointError(
            f"{path} is truncated: expected a header of {length} bytes, found {size - 8}. "
            "Copy or save it again"
        )
    shapes, metadata, end = _entries(path, start)
    expected = 8 + length + end
    if size != expected:
        raise CorruptCheckpointError(
            f"{path} is truncated or damaged: expected {expected} bytes, found {size}. "
            "Copy or save it again"
        )
    packed = None
    header = _conversion(path, metadata)
    if [*shapes] == [archive.NAME]:
        inner = archive.inner_header(path, 8 + length)
        shapes, metadata, end = _entries(path, inner[8:])
        packed = (8 + length, len(inner) + end)
        archive.check_size(path, packed[1])
        header = _conversion(path, metadata)
    try:
        aliases = json.loads(metadata.get("aliases", "{}"))
        _check_header(header)
        _expect(("prompt_bits" in header) == (packed is not None), header.get("prompt_bits"))
        _expect(type(aliases) is dict and all(map(shapes.__contains__, aliases.values())), aliases)
        with safe_open(path, framework="pt"):
            pass
    except DAMAGE as error:
        raise CorruptCheckpointError(f"{path} has a damaged header: {error!r}") from error
    return Header(header, aliases, shapes, packed)


def _conversion(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Our JSON object from the metadata of a file, of a format that can be read."""
    if "kanmeta" not in metadata:
        raise ForeignCheckpointError(
            f"{path} is a safetensors file, but kanmeta.save did not write it: expected 'kanmeta' "
            f"in its metadata, found {sorted(metadata)}. A checkpoint of the unconverted model "
            "is loaded before convert, with the library's own means"
        )
    try:
        header: dict[str, Any] = json.loads(metadata["kanmeta"])
        found = header["format"]
    except DAMAGE as error:
        raise CorruptCheckpointError(f"{path} has a damaged header: {error!r}") from error
    if isinstance(found, int) and found > FORMAT:
        raise VersionError(
            f"{path} has format {found}, written by kanmeta {header.get('kanmeta')}; this "
            f"version reads formats up to {FORMAT}. Upgrade: pip install -U kanmeta"
        )
    return header


def _entries(path: Path, text: bytes) -> tuple[dict[str, tuple[int, ...]], dict[str, str], int]:
    """Shapes, metadata and end of the data from the JSON text of a safetensors header."""
    try:
        entries = json.loads(text.decode())  # of bytes, json would guess UTF-16 and UTF-32
        metadata = entries.pop("__metadata__", {})
        _expect(type(metadata) is dict and all(type(v) is str for v in metadata.values()), metadata)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        spans = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
        sizes = [n for pair in (*shapes.values(), *spans.values()) for n in pair]
        _expect(all(type(n) is int and n >= 0 for n in sizes), sizes)
        # No numbers are wider than 16 bytes, and there are no holes: shapes bound the memory.
        lengths = {name: end - start for name, (start, end) in spans.items()}
        _expect(all(0 <= lengths[n] <= 16 * math.prod(shapes[n]) for n in shapes), spans)
        _expect(sum(lengths.values()) == max((end for _, end in spans.values()), default=0), spans)
        last = max((end for _, end in spans.values()), default=0)
    except DAMAGE as error:
        raise CorruptCheckpointError(f"{path} has a damaged header: {error!r}") from error
    return shapes, metadata, last


_META = {
    "layer": str,
    "dim_z": int,
    "hidden": int,
    "dim_w": int,
    "activation": str,
    "bias": bool,
}
_LAYER = {
    "name": str,
    "adapter": str,
    "edge": str,
    "execution": str,
    "meta_learner": int,
    "shape": list,
    "slots": dict,
    "mapped": bool,
    "dropped": list,
    "settings": dict,
    "attributes": list,
}


def _check_header(header: Mapping[str, Any]) -> None:
    """Raise ValueError for what :func:`describe` cannot have made."""
    metas, layers = header["meta_learners"], header["layers"]
    _expect(type(header["format"]) is int and header["format"] >= 1, header["format"])
    _expect(type(metas) is list and type(layers) is list and bool(layers), layers)
    for entries, fields in ((metas, _META), (layers, _LAYER)):
        for entry in entries:
            _expect(type(entry) is dict and entry.keys() == fields.keys(), entry)
            _expect(all(type(entry[key]) is kind for key, kind in fields.items()), entry)
    bits = header.get("prompt_bits")
    _expect(bits is None or (type(bits) is int and bits in BITS), bits)
    for meta in metas:
        _expect(min(meta["dim_z"], meta["hidden"], meta["dim_w"]) >= 1, meta)
        _expect(meta["activation"] in ACTIVATIONS, meta)
    for layer in layers:
        _expect(0 <= layer["meta_learner"] < len(metas), layer)
        _expect(layer["edge"] in ("tap", "pair") and layer["execution"] in EXECUTIONS, layer)
        _expect(all(type(n) is int and n >= 1 for n in layer["shape"]), layer)
        names = [*layer["dropped"], *layer["attributes"]]
        _expect(all(type(name) is str for name in names), names)
        _expect(layer["shape"][-1:] == [metas[layer["meta_learner"]]["dim_w"]], layer)
    _expect(type(header["frozen"]) is bool, header["frozen"])
    for entry in header["containers"]:
        _expect(entry.keys() == {"name", "state"} and type(entry["name"]) is str, entry)
    _expect(len({layer["name"] for layer in layers}) == len(layers), "a layer twice")
    # Each meta-learner is used, and its owner is one of its layers.
    users = [[la["name"] for la in layers if la["meta_learner"] == i] for i in range(len(metas))]
    for meta, names in zip(metas, users, strict=True):
        _expect(meta["layer"] in names, meta)


def _expect(condition: bool, found: object) -> None:
    if not condition:
        raise ValueError(f"not written by kanmeta.save: {found}")
