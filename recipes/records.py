"""Result files: where a number comes from, and JSON that is written as a whole or not at all."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanmeta.atomic import replacing

__all__ = ["code_state", "counts", "hardware", "read_json", "versions", "write_json"]

REPOSITORY = Path(__file__).parents[1]

_CODE = ("kanmeta", "adapters", "recipes", "pyproject.toml")
_PACKAGES = ("kanmeta", "torch", "numpy", "scikit-learn", "safetensors", "einops", "timm")
_SOMETIMES = ("torchvision", "accelerate", "submitit", "pykan")


def code_state() -> dict[str, Any]:
    """Commit of the code and whether it differs from that commit; None where git cannot tell.

    Only what a result depends on counts: new result files do not make the tree dirty.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *_CODE)
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python, of packages a result depends on, and of those it may if they are here."""
    found = {"python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    for name in _SOMETIMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """What the numbers were computed on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def _processor() -> str:
    try:  # platform.processor() is empty on many Linux systems
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def counts(model: nn.Module) -> dict[str, int]:
    """Numbers in Parameters that are trained and in those that are not."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "trainable": trainable,
        "frozen": sum(p.numel() for p in model.parameters()) - trainable,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Content of a result file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result file; a file that was there is replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with replacing(path) as new:
        new.write_text(text)
