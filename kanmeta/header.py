"""The JSON header of a checkpoint: how to convert a fresh model so that the tensors fit.

Stored in the safetensors metadata under ``"kanmeta"``; ``"aliases"`` beside it names tied tensors.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import nn

from kanmeta.access import complete_layers, meta_learners
from kanmeta.errors import (
    CheckpointError,
    CorruptCheckpointError,
    ForeignCheckpointError,
    VersionError,
)
from kanmeta.extra_state import container_states, moved_attributes, settings_of
from kanmeta.meta import ACTIVATIONS
from kanmeta.policy import EXECUTIONS
from kanmeta.surgery import FROZEN

__all__ = ["FORMAT", "Header", "describe", "read"]

FORMAT = 1
"""Version of the header that this code writes; it reads this and every earlier one."""

_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        conversion: see :func:`describe`.
        aliases: name -> stored name, for tensors of the model that are one and the same.
        shapes: stored name -> shape.
    """

    conversion: dict[str, Any]
    aliases: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def describe(model: nn.Module) -> dict[str, Any]:
    """Return the JSON object that says how ``model`` was converted."""
    layers = complete_layers(model)
    metas = meta_learners(model)
    index = {meta: number for number, meta in enumerate(metas.values())}
    return {
        "format": FORMAT,
        "kanmeta": version("kanmeta"),
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
    try:
        entries = json.loads(start)
        metadata = entries.pop("__metadata__", {})
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        expected = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptCheckpointError(f"{path} has a damaged header: {error!r}") from error
    if size != expected:
        raise CorruptCheckpointError(
            f"{path} is truncated or damaged: expected {expected} bytes, found {size}. "
            "Copy or save it again"
        )
    if "kanmeta" not in metadata:
        raise ForeignCheckpointError(
            f"{path} is a safetensors file, but kanmeta.save did not write it: expected 'kanmeta' "
            f"in its metadata, found {sorted(metadata)}. A checkpoint of the unconverted model "
            "is loaded before convert, with the library's own means"
        )
    try:
        header = json.loads(metadata["kanmeta"])
        aliases = json.loads(metadata.get("aliases", "{}"))
        found = header["format"]
        if isinstance(found, int) and found > FORMAT:
            raise VersionError(
                f"{path} has format {found}, written by kanmeta {header.get('kanmeta')}; this "
                f"version reads formats up to {FORMAT}. Upgrade: pip install -U kanmeta"
            )
        _check_header(header)
        _expect(type(aliases) is dict and all(map(shapes.__contains__, aliases.values())), aliases)
        with safe_open(path, framework="pt"):
            pass
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CorruptCheckpointError(f"{path} has a damaged header: {error!r}") from error
    return Header(header, aliases, shapes)


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
