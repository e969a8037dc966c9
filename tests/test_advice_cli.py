"""Advice of the command line is true: here it is followed, and works."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from kanmeta.cli.app import app
from recipes.reference.efficient_kan import KAN

MODEL = "recipes.reference.efficient_kan:KAN"
TARGET = f"{MODEL}([6, 5, 3])"
FEW = ("--fit-steps", "1", "--steps", "1", "--layer-steps", "1")


def run(*arguments: str | Path, told: str | None = None) -> None:
    """Run a command, which works, or says ``told``."""
    result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="kanmeta")
    assert result.exit_code == (told is not None), result.output
    assert told is None or told in result.stderr


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(KAN([6, 5, 3]).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_of_targets(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("inspect", "kan", told="Expected for example kan:KAN, with --args '[[4, 8, 1]]'")
    run("inspect", MODEL, "--args", "[[4, 8, 1]]")
    run("inspect", f"{MODEL}([4, 8, 1], grid_size=5)")
    run("inspect", MODEL, "--args", "3", told="an object of named ones, '{\"width\": [4, 8, 1]}'")
    run("inspect", MODEL, "--args", '{"layers_hidden": [4, 8, 1]}')
    (tmp_path / "own_models.py").write_text(
        f"from {MODEL.replace(':', ' import ')}\nmodel = KAN([4, 8, 1])\n"
        "def make():\n    return KAN([2 ** 3, 4])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run("inspect", f"{MODEL}([2 ** 3, 4])", told="Other arguments need a function of your own")
    run("inspect", "own_models:make")
    run("inspect", "own_models:model", "--args", "[1]", told="leave its arguments out")
    run("inspect", "own_models:model")


def test_of_made_up_inputs(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("distill", TARGET, out, "--weights", weights, *FEW, "--data", "normal")
    run(*common, "--key", "x", told="leave it out for normal")
    run(*common)


def test_of_options_of_distill(weights: Path, tmp_path: Path) -> None:
    common = ("distill", TARGET, tmp_path / "out", "--weights", weights, *FEW, "--force")
    run(*common, "--loss", "mse", told="are for --data: leave them out, or add it")
    run(*common)
    run(*common, "--loss", "mse", "--data", "normal")
    rows, classes = tmp_path / "rows.npy", tmp_path / "classes.npy"
    np.save(rows, np.zeros((4, 6), dtype=np.float32))
    np.save(classes, np.zeros((4, 1), dtype=np.int64))
    run(
        *common,
        "--test",
        rows,
        classes,
        told="a class for each row of the inputs. Store these alone",
    )
    np.save(classes, np.zeros(4, dtype=np.int64))
    run(*common, "--test", rows, classes)
    one = f"{MODEL}([6, 5, 1])"
    save_file(KAN([6, 5, 1]).state_dict(), weights)
    common = ("distill", one, tmp_path / "out", "--weights", weights, *FEW, "--force")
    run(*common, "--test", rows, classes, told="scores (N, C) of C >= 2 classes")
    run(*common)


def test_of_places(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("convert", weights, out, told="A file of weights goes to --weights")
    run("convert", TARGET, out, "--weights", weights)
    run("convert", TARGET, out, told="give another name, or --force to replace it")
    run("convert", TARGET, tmp_path / "other")
    run("convert", TARGET, tmp_path, "--force", told="is not a regular file; give another name")
    run("inspect", weights, "--args", "[]", told="a file takes neither --args nor --weights")
    run("inspect", weights)


def test_of_files_of_weights(tmp_path: Path) -> None:
    model, out = KAN([6, 5, 3]), tmp_path / "out"
    torch.save(model, tmp_path / "weights.pt")
    part = "one that torch.save made of model.state_dict()"
    run("convert", TARGET, out, "--weights", tmp_path / "weights.pt", told=part)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    run("convert", TARGET, out, "--weights", tmp_path / "weights.pt")
    save_file({"weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    part = "Inspect the model itself, module:function, for the reasons layer by layer"
    run("inspect", tmp_path / "other.safetensors", told=part)
    run("inspect", "torch.nn:Linear(3, 3)", told="no layer to convert among 1 module(s)")


def test_of_data(weights: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (64, 6), np.uint8)
    scaled = (x / 127.5 - 1).astype(np.float32)
    np.save(tmp_path / "bytes.npy", x)
    np.save(tmp_path / "scaled.npy", scaled)
    np.savez(tmp_path / "two.npz", a=scaled, b=scaled)
    common = ("distill", TARGET, tmp_path / "out", "--weights", weights, "--force", *FEW)
    part = "scale and normalise them as in training and store float32"
    run(*common, "--data", tmp_path / "bytes.npy", told=part)
    run(*common, "--data", tmp_path / "scaled.npy")
    run(*common, "--data", tmp_path / "two.npz", told="say which with --key")
    run(*common, "--data", tmp_path / "two.npz", "--key", "b")


def test_of_options() -> None:
    run("inspect", TARGET, "--clusters", "each", told="expected a number, or 'layer'")
    run("inspect", TARGET, "--clusters", "layer")
    run("bench", TARGET, "--input", "6", "--input", "x", told="expected sizes such as 128,784")
    run("bench", TARGET, "--input", "128,6", "--repeats", "1")
