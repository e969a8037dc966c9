"""Commands that cannot work: exit code, one message without a traceback, nothing written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from kanmeta.cli.app import app
from recipes.reference import efficient_kan

MODEL = "recipes.reference.efficient_kan:KAN"
TARGET = f"{MODEL}([6, 5, 3])"


def run(*arguments: str | Path, code: int) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="kanmeta")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "neither a file nor module:function"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        (f"{MODEL}x([6])", "has no 'KANx'"),
        (f"{MODEL}(open('x'))", "expected module:name or module:name(arguments)"),
        (f"{MODEL}([6)", "expected module:name or module:name(arguments)"),
        (
            f"{MODEL}([6, 5], **{{'grid_size': 9}})",
            "expected module:name or module:name(arguments)",
        ),
        (f"{MODEL}()", "failed with TypeError"),
        ("math:pi", "expected a class or a function"),
        ("math:floor(1)", "returned a int; expected a torch.nn.Module"),
        ("torch.nn:Linear(2, 2)", "no layer to convert"),
        ("missing.safetensors", "missing.safetensors: No such file or directory"),
    ],
)
def test_targets_that_are_none(target: str, message: str) -> None:
    shown = run("inspect", target, code=1)
    assert shown.startswith("error: ")
    assert message in shown


@pytest.mark.parametrize("arguments", ["{", "3"])
def test_arguments_that_are_no_json(arguments: str) -> None:
    assert "--args" in run("inspect", MODEL, "--args", arguments, code=1)


def test_usage_has_its_own_exit_code() -> None:
    run("inspect", TARGET, "--dim", "2", code=2)
    run("nothing", code=2)
    run("convert", TARGET, code=2)
    trained = ("distill", TARGET, "out.safetensors", "--weights", "in.safetensors")
    for name in ("--steps", "--layer-steps", "--fit-steps"):
        assert "-1 is not in the range x>=0" in run(*trained, name, "-1", code=2)


def test_errors_as_json() -> None:
    result = CliRunner().invoke(app, ["inspect", TARGET, "--dim-z", "0", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "error": "PlanError",
        "message": "dim_z=0: expected a positive integer",
    }


def test_files_are_only_replaced_by_force(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(efficient_kan.KAN([6, 5, 3]).state_dict(), weights)
    compact, taken = tmp_path / "compact.safetensors", tmp_path / "taken.safetensors"
    run("convert", TARGET, compact, code=0)
    taken.write_bytes(b"precious")
    few = ("--weights", weights, "--fit-steps", "1")
    for command in (
        ("convert", TARGET, taken),
        ("distill", TARGET, taken, *few),
        ("materialize", compact, taken, "--model", TARGET),
    ):
        assert "--force to replace it" in run(*command, code=1)
        assert taken.read_bytes() == b"precious"
        run(*command, "--force", code=0)  # the advice helps
        assert taken.read_bytes() != b"precious"
        taken.write_bytes(b"precious")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [weights.name, compact.name, taken.name]
    )


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compact, old = tmp_path / "compact.safetensors", tmp_path / "old.safetensors"
    run("convert", TARGET, compact, code=0)
    old.write_bytes(b"precious")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", str(old))

    monkeypatch.setattr(os, "fsync", full)
    for command in (("materialize", compact, old, "--model", TARGET), ("convert", TARGET, old)):
        assert "No space left on device" in run(*command, "--force", code=1)
        assert old.read_bytes() == b"precious"
    assert len([*tmp_path.iterdir()]) == 2


def test_weights_without_code_only(tmp_path: Path) -> None:
    model = efficient_kan.KAN([6, 5, 3])
    out = tmp_path / "out.safetensors"
    torch.save(model, tmp_path / "whole.pt")
    torch.save({"lr": 1.0}, tmp_path / "other.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    save_file(efficient_kan.KAN([6, 4, 3]).state_dict(), tmp_path / "narrow.safetensors")
    for name, message in (
        ("whole.pt", "a whole pickled model is refused"),
        ("other.pt", "holds no state_dict: expected name -> tensor, found a dict with lr"),
        ("text.safetensors", "cannot be read as tensors"),
        ("narrow.safetensors", "size mismatch for layers.0.base_weight"),
        ("missing.pt", "No such file or directory"),
    ):
        assert message in run("convert", TARGET, out, "--weights", tmp_path / name, code=1)
    assert not out.exists()


def test_data_that_cannot_be_inputs(tmp_path: Path) -> None:
    save_file(efficient_kan.KAN([6, 5, 3]).state_dict(), tmp_path / "weights.safetensors")
    np.savez(tmp_path / "two.npz", a=np.zeros((9, 6)), b=np.zeros((9, 6)))
    np.save(tmp_path / "bytes.npy", np.zeros((9, 6), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "wide.npy", np.zeros((64, 7), np.float32))
    (tmp_path / "x.csv").write_text("1,2")
    out = tmp_path / "out.safetensors"
    common = ("distill", TARGET, out, "--weights", tmp_path / "weights.safetensors")
    few = ("--fit-steps", "1", "--steps", "1", "--layer-steps", "1")
    for name, more, message in (
        ("two.npz", (), "holds a, b: say which with --key"),
        ("two.npz", ("--key", "c"), "has no 'c'; it holds a, b"),
        ("bytes.npy", (), "scale and normalise them"),
        ("objects.npy", (), "cannot be read as arrays of numbers"),
        ("x.csv", (), "expected a .npy, .npz or .safetensors file"),
        ("wide.npy", (), "running the model on --data failed"),
    ):
        assert message in run(*common, *few, "--data", tmp_path / name, *more, code=1)
    assert not out.exists()
    assert "expected one of" in run(*common, "--bits", "5", code=1)
    assert "or 'layer'" in run(*common, "--clusters", "many", code=1)
    assert "is not a regular file" in run("convert", TARGET, tmp_path, "--force", code=1)
    assert "; make it first" in run("convert", TARGET, tmp_path / "a" / "b.st", code=1)
    (tmp_path / "a").mkdir()
    run("convert", TARGET, tmp_path / "a" / "b.st", code=0)


def test_files_in_the_place_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(efficient_kan.KAN([6, 5, 3]).state_dict(), path)
    assert "A file of weights goes to --weights" in run("bench", path, "--input", "1,6", code=1)
    assert "takes neither" in run("inspect", path, "--args", "[]", code=1)
    assert "kanmeta.save did not write it" in run("info", path, code=1)
    assert "expected sizes such as" in run("bench", TARGET, "--input", "0,6", code=1)
    assert "a training step failed" in run("bench", TARGET, "--input", "2,7", code=1)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_what_to_install(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import kanmeta.cli\n"
        "sys.argv = ['kanmeta', '--version']\n"
        "kanmeta.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"needs {missing}, which is not installed: pip install click rich" in done.stderr
    assert "Traceback" not in done.stderr


def test_as_a_module_and_completion() -> None:
    command = [sys.executable, "-m", "kanmeta"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kanmeta, version ")
    env = os.environ | {"_KANMETA_COMPLETE": "bash_complete", "COMP_WORDS": "kanmeta in"}
    env |= {"COMP_CWORD": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,info", "plain,inspect"]
