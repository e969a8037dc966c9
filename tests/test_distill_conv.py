"""The recipe that distils a convolutional network, in its smallest form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kanmeta.distill_data import Batches
from recipes import distill_conv
from recipes.conv_images import Shown, limited
from recipes.data import load_images
from recipes.training import Pixels


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


def test_images_left_out_are_tested_with_and_none_is_trained_with(images: Path) -> None:
    everything = load_images("cifar-10", (images,))
    some = limited(everything, 40)
    assert [len(t) for t in (some.train_images, some.test_images, some.test_labels)] == [40, 80, 80]
    sets = [{bytes(i.numpy()) for i in t} for t in (some.train_images, some.test_images)]
    assert len(sets[0] | sets[1]) == 120
    known = {
        bytes(image.numpy()): int(label)
        for image, label in zip(everything.train_images, everything.train_labels, strict=True)
    }
    for image, label in zip(some.test_images[40:], some.test_labels[40:], strict=True):
        assert known[bytes(image.numpy())] == label
    assert torch.equal(
        some.train_images, Pixels.of(everything, limit=40).values[:40].view(-1, 3, 32, 32)
    )


def test_shown_images_are_new_at_every_pass_but_for_the_first_ones(images: Path) -> None:
    data = Pixels.of(load_images("cifar-10", (images,)))
    one, other = Shown(data, 4, seed=1), Shown(data, 4, seed=1)
    torch.manual_seed(0)
    first, second = list(one), list(one)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert [len(batch) for batch in first] == [4] * 24
    same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    held_out = Batches(one, 4, torch.device("cpu"), None).held_out
    assert same == [True] * len(held_out) + [False] * 22
    assert all(torch.equal(a, b) for (a,), b in zip(held_out, first, strict=False))
    known = data.inputs(slice(0, data.train))
    assert all((known == image).all(1).any() for image in torch.cat(first[:2]))
    assert [len(batch) for batch in Shown(data, 96, seed=1)] == [96]


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
    (blind,) = (r for r in found.values() if r["data_used"] == "normal")
    assert blind["report"]["stages"][-1]["name"] == "outputs (mse), standard inputs"
    assert {r["test_images"] for r in found.values()} == {64}
    assert "distilled" in (folder / "README.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    # A result whose student is not there: it is made again.
    (folder / "cifar-10-kanconv-32-tuned-s0.json").unlink()
    (tmp_path / "runs" / "distill" / "cifar-10-kanconv-32-s0-student.safetensors").unlink()
    distill_conv.main([*common, "--limit", "32"])
    again = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert {p.name for p in again if again[p] != before[p]} == {"cifar-10-kanconv-32-tuned-s0.json"}
    assert "tuned" in capsys.readouterr().out
