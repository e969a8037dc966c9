"""What a compact file says of itself; nothing but its header is read."""

import math
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from safetensors import safe_open

from kanmeta import header as headers
from kanmeta.cli.output import layers_table

__all__ = ["info_record", "info_tables"]


def info_record(path: Path) -> dict[str, Any]:
    """Plain data of the header of ``path``.

    Raises:
        FileNotFoundError, CheckpointError: see :func:`kanmeta.load`.
    """
    header, _, shapes, packed = headers.read(path)
    metas = header["meta_learners"]
    layers = [
        {
            "name": layer["name"],
            "adapter": layer["adapter"],
            "edge": layer["edge"],
            "execution": layer["execution"],
            "edges": layer["shape"][:-1],
            "dim_w": layer["shape"][-1],
            "meta_learner": layer["meta_learner"],
            "prompts": _prompt_type(path, layer["name"], header, packed is not None),
        }
        for layer in header["layers"]
    ]
    edges = sum(math.prod(layer["edges"]) for layer in layers)
    size = path.stat().st_size
    return {
        "file": str(path),
        "format": header["format"],
        "kanmeta": header["kanmeta"],
        "compressed": packed is not None,
        "prompt_bits": header.get("prompt_bits"),
        "file_bytes": size,
        "edges": edges,
        "file_bytes_per_edge": size / edges,
        "tensors": len(shapes),
        "layers": layers,
        "meta_learners": metas,
    }


def _prompt_type(path: Path, layer: str, header: dict[str, Any], packed: bool) -> str:
    if packed:
        return f"{header['prompt_bits']}-bit codes"
    with safe_open(path, framework="pt") as file:
        return str(file.get_slice(f"{layer}.prompts".lstrip(".")).get_dtype())


def info_tables(record: dict[str, Any]) -> list[RenderableType]:
    """What people see of :func:`info_record`."""
    head = (
        f"{record['file']}: format {record['format']}, written by kanmeta {record['kanmeta']}"
        f"{', compressed' if record['compressed'] else ''}\n"
        f"{record['file_bytes']:,} bytes for {record['edges']:,} edges: "
        f"{record['file_bytes_per_edge']:.4g} bytes an edge, everything included"
    )
    layers = layers_table(record["layers"], ["prompts", "execution"], ["prompts", "execution"])
    metas = [
        f"meta-learner #{i}: {m['dim_z']} -> {m['hidden']} {m['activation']} -> {m['dim_w']}"
        f"{'' if m['bias'] else ', no biases'}, stored with {m['layer'] or '(root)'}"
        for i, m in enumerate(record["meta_learners"])
    ]
    return [head, layers, *metas]
