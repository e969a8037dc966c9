"""docs/format.md is enough to read a file: a reader made from it, without kanmeta and torch."""

import json
import lzma
import math
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kanmeta
from recipes.reference import conv_kan, efficient_kan, fast_kan

# --- the reader: json, struct, numpy, zlib, lzma -----------------------------------------------

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "u1", "I64": "<i8", "BOOL": "?"}
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda a: np.maximum(a, 0),
    "gelu": lambda a: a * (1 + np.vectorize(math.erf)(a / math.sqrt(2))) / 2,
    "silu": lambda a: a / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "identity": lambda a: a,
}
Arrays = dict[str, Any]


def safetensors(content: bytes) -> tuple[dict[str, str], Arrays]:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    data = content[8 + length :]
    return metadata, {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], TYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


def inflated(archive: bytes) -> bytes:
    pieces, at, end = [], 0, len(archive) - 4
    while at < end:
        method, n = struct.unpack("<BI", archive[at : at + 5])
        data = archive[at + 5 : at + 5 + n]
        at += 5 + n
        if method == 1:
            data = zlib.decompress(data, -15)
        elif method in (2, 3):
            lc = {2: 0, 3: 4}[method]
            options = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": lc, "lp": 0, "pb": 0}
            data = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[options]).decompress(data)
        pieces.append(data)
    inner = b"".join(pieces)
    assert struct.pack("<I", zlib.crc32(inner)) == archive[-4:]
    return inner


def prompts(conversion: Any, layer: Any, tensors: Arrays, prefix: str) -> Any:
    if "prompt_bits" not in conversion:
        return tensors[f"{prefix}prompts"]
    bits, edges = conversion["prompt_bits"], math.prod(layer["shape"][:-1])
    book = tensors[f"{prefix}prompts.codebook"]
    if book.shape[1] > 2**bits:
        bits = 8
    packed = tensors[f"{prefix}prompts.codes"].reshape(len(book), -1)
    per = 8 // bits
    codes = np.stack([packed >> (bits * i) & (2**bits - 1) for i in range(per)], -1)
    codes = codes.reshape(len(book), -1)[:, :edges]
    return np.stack([row[c] for row, c in zip(book, codes, strict=True)], -1).reshape(
        *layer["shape"][:-1], len(book)
    )


def coefficients(content: bytes) -> tuple[Any, Arrays, Arrays]:
    """Conversion, tensors, and w ``(*edge axes, dim_w)`` of each layer before T."""
    metadata, tensors = safetensors(content)
    if [*tensors] == ["archive"]:
        metadata, tensors = safetensors(inflated(tensors["archive"].tobytes()))
    conversion = json.loads(metadata["kanmeta"])
    assert conversion["format"] <= 3
    for name, stored in json.loads(metadata.get("aliases", "{}")).items():
        tensors[name] = tensors[stored]
    found = {}
    for layer in conversion["layers"]:
        prefix = f"{layer['name']}." if layer["name"] else ""
        meta = conversion["meta_learners"][layer["meta_learner"]]
        owner = f"{meta['layer']}.meta_learner." if meta["layer"] else "meta_learner."
        w1, w2 = (tensors[f"{owner}weight{n}"].astype("f8") for n in (1, 2))
        b1, b2 = (tensors[f"{owner}bias{n}"] if meta["bias"] else 0.0 for n in (1, 2))
        z = prompts(conversion, layer, tensors, prefix).astype("f8")
        w = ACTIVATIONS[meta["activation"]](z @ w1.T + b1) @ w2.T + b2
        scale, offset = (tensors[f"{prefix}coefficient_{n}"] for n in ("scale", "offset"))
        found[layer["name"]] = offset + scale * w
    return conversion, tensors, found


def dimensions(layout: str) -> list[list[str]]:
    parts = re.findall(r"\(([\w ]+)\)|(\w+)", layout)
    return [[a for a in (inner or one).split() if a != "1"] for inner, one in parts]


def library_tensors(
    layer: Any, w: Any, coefficient_map: Any, shapes: dict[str, tuple[int, ...]]
) -> Arrays:
    """Tensors by path; ``shapes`` of them give the sizes of axes that are no edge axes."""
    first = next(iter(layer["slots"].items()))
    there = {a for d in dimensions(first[1]) for a in d} | {*re.findall(r"{(\w+)}", first[0])}
    kernel = () if layer["edge"] == "pair" else ("kd", "kh", "kw")
    axes = [a for a in ("g", "o", "i", *kernel) if a in there]
    sizes = dict(zip(axes, layer["shape"][:-1], strict=True))
    for path, layout in layer["slots"].items():
        stacked = re.findall(r"{(\w+)}", path)
        shape = shapes[re.sub(r"{\w+}", "0", path)]
        for dimension, size in zip(dimensions(layout)[len(stacked) :], shape, strict=True):
            unknown = [a for a in dimension if a not in sizes]
            if len(unknown) == 1:
                known = math.prod(sizes[a] for a in dimension if a in sizes)
                sizes[unknown[0]] = size // known
    made, start, mapped = {}, 0, False
    for path, layout in layer["slots"].items():
        order = [a for d in dimensions(layout) for a in d]
        rest = [a for a in order if a not in axes]
        width = math.prod(sizes[a] for a in rest)
        piece = w[..., start : start + width]
        start += width
        if layer["mapped"] and rest and not mapped:
            mapped = True
            piece = (np.expand_dims(coefficient_map, axes.index("o")) @ piece[..., None])[..., 0]
        piece = piece.reshape([sizes[a] for a in (*axes, *rest)])
        piece = piece.transpose([(*axes, *rest).index(a) for a in order])
        piece = piece.reshape([math.prod(sizes[a] for a in d) for d in dimensions(layout)])
        if "{" in path:
            made |= {re.sub(r"{\w+}", str(n), path): part for n, part in enumerate(piece)}
        else:
            made[path] = piece
    assert start == layer["shape"][-1]
    return made


# --- compared with kanmeta ---------------------------------------------------------------------


def _conv() -> nn.Module:
    layer = conv_kan.KANConv2DLayer(4, 6, 3, groups=2)
    return nn.Sequential(layer, conv_kan.KANConv2DLayer(6, 2, 3))


def _pykan() -> nn.Module:
    kan = pytest.importorskip("kan")
    model: nn.Module = kan.KAN([3, 4, 2], grid=4, auto_save=False)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "efficient-kan": (lambda: efficient_kan.KAN([5, 4, 3]), {"dim_z": 2}),
    "no biases": (lambda: efficient_kan.KAN([5, 4, 3]), {"bias": False, "clusters": "layer"}),
    "root": (lambda: efficient_kan.KANLinear(5, 4), {"activation": "gelu"}),
    "fast-kan": (lambda: fast_kan.FastKAN([5, 4, 3]), {"activation": "tanh"}),
    "convolution": (_conv, {"activation": "silu", "dim_z": 3}),
    "channel pairs": (_conv, {"edge": "pair", "activation": "identity"}),
    "pykan": (_pykan, {}),
}


@pytest.mark.parametrize("bits", [None, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # pykan's own, and that the models are tiny
def test_the_reader_finds_what_kanmeta_does(case: str, bits: int | None, tmp_path: Path) -> None:
    build, options = CASES[case]
    path = tmp_path / "file.safetensors"
    model = kanmeta.convert(build().double(), hidden=6, **options)
    kanmeta.save(model, path, prompt_bits=bits)
    _compare(path, build)


def _compare(path: Path, build: Callable[[], nn.Module]) -> None:
    plain = build().double()
    shapes = {name: tuple(p.shape) for name, p in plain.named_parameters()}
    loaded = kanmeta.load(plain, path)
    conversion, tensors, found = coefficients(path.read_bytes())
    expected = {name: w.detach() for name, w in kanmeta.coefficients(loaded).items()}
    assert found.keys() == expected.keys()
    state = dict(kanmeta.materialize(loaded).state_dict())
    left = {*state}
    for layer in conversion["layers"]:
        name, prefix = layer["name"], f"{layer['name']}." if layer["name"] else ""
        if not layer["mapped"]:
            torch.testing.assert_close(torch.tensor(found[name]), expected[name])
        own = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
        made = library_tensors(layer, found[name], tensors.get(f"{prefix}coefficient_map"), own)
        for part, value in made.items():
            assert value.std() > 0
            torch.testing.assert_close(torch.tensor(value), state[prefix + part])
            left.discard(prefix + part)
    for name in left:
        stored = tensors.get(name, np.ones(state[name].shape))  # a factor that was folded in
        assert torch.equal(torch.tensor(stored).double(), state[name].double()), name


def test_maps_of_grid_updates(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(efficient_kan.KANLinear(5, 4).double())

    model = kanmeta.convert(build(), hidden=6)
    model[0].update_grid(torch.rand(200, 5, dtype=torch.float64) * 1.5 - 0.5)
    kanmeta.save(model, tmp_path / "file.safetensors")
    conversion = coefficients((tmp_path / "file.safetensors").read_bytes())[0]
    assert conversion["layers"][0]["mapped"]
    _compare(tmp_path / "file.safetensors", build)


def test_aliases(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.ModuleList([efficient_kan.KANLinear(5, 4), nn.Linear(3, 3), nn.Linear(3, 3)])
        model[2].weight = model[1].weight
        return model

    kanmeta.save(kanmeta.convert(build(), hidden=2), tmp_path / "file.safetensors")
    _, tensors, _ = coefficients((tmp_path / "file.safetensors").read_bytes())
    assert np.array_equal(tensors["2.weight"], tensors["1.weight"])


def test_every_member_is_on_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    kanmeta.save(kanmeta.convert(_conv(), hidden=2), tmp_path / "file.safetensors", prompt_bits=2)
    conversion, tensors, _ = coefficients((tmp_path / "file.safetensors").read_bytes())
    members = {*conversion, *conversion["layers"][0], *conversion["meta_learners"][0]}
    assert len(members) > 15
    assert [name for name in members if f"`{name}`" not in page] == []
    ours = {name.rpartition(".")[2] for name in tensors if "coefficient" in name or "codes" in name}
    assert ours == {"coefficient_scale", "coefficient_offset", "codes"}
    assert [name for name in ours if name not in page] == []
