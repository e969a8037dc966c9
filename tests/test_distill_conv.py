"""The recipe that distils a convolutional network, in its smallest form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes import distill_conv


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file like CIFAR-10's, and steps that take seconds."""
    few: dict[str, Any] = {
        "EPOCHS": 1,
        "FIT_STEPS": 2,
        "LAYER_STEPS": 1,
        "STEPS": 1,
        "TUNING_STEPS": 1,
        "HIDDEN": 4,
        "CHANNELS": (4, 4, 4, 4),
    }
    for name, value in few.items():
        monkeypatch.setattr(distill_conv, name, value)
    random = np.random.default_rng(0)
    arrays = {
        f"{what}_{part}": random.integers(0, top, shape, dtype=np.uint8)
        for part in ("train", "test")
        for what, top, shape in (("x", 256, (96, 32, 32, 3)), ("y", 10, (96,)))
    }
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays)
    return path


def test_every_model_is_recorded_once_for_each_number_of_images(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results" / "distill"
    common = ["--data-root", str(images), "--out", str(tmp_path)]
    distill_conv.main([*common, "--limit", "32"])
    found = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert {(r["kind"], r["dim_z"], r["data_used"]) for r in found.values()} == {
        ("from scratch", 1, "all, with labels"),
        ("distilled", 4, "normal"),
        ("distilled", 2, "training images"),
        ("distilled", 1, "training images"),
        ("distilled, trained on", 1, "all, with labels"),
    }
    assert all(len(r["files"]) == (r["kind"] != "distilled") for r in found.values())
    assert {r["images"] for r in found.values()} == {32}
    assert "distilled" in (folder / "README.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    # A result whose student is not there: it is made again.
    (folder / "cifar-10-kanconv-32-tuned-s0.json").unlink()
    (tmp_path / "runs" / "distill" / "cifar-10-kanconv-32-s0-student.safetensors").unlink()
    distill_conv.main([*common, "--limit", "32"])
    again = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert {p.name for p in again if again[p] != before[p]} == {"cifar-10-kanconv-32-tuned-s0.json"}
    assert "tuned" in capsys.readouterr().out
