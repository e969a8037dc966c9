"""The command line on small models: what it says, what it writes, and that the numbers are true."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import nn

import kanmeta
from kanmeta.cli.app import app
from recipes.reference import efficient_kan, fast_kan
from tests import stand_ins

TARGET = "recipes.reference.efficient_kan:KAN([24, 20, 3])"
SMALL = ("--hidden", "8")


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="kanmeta")
    assert result.exit_code == code, result.output
    return result


def record(*arguments: str | Path, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def embedded() -> nn.Module:
    """A model that does not take inputs of its first layer."""
    return nn.Sequential(nn.Embedding(5, 4), efficient_kan.KAN([4, 20, 3]))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Weights that no seed gives."""
    model = efficient_kan.KAN([24, 20, 3])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path / "trained.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_inspect_says_what_convert_does(tmp_path: Path) -> None:
    said = record("inspect", TARGET, *SMALL, "--dim-z", "2", "--clusters", "layer")
    out = tmp_path / "out.safetensors"
    done = record("convert", TARGET, out, *SMALL, "--dim-z", "2", "--clusters", "layer")
    assert said["kind"] == "model"
    assert [layer["name"] for layer in said["layers"]] == ["layers.0", "layers.1"]
    assert {layer["adapter"] for layer in said["layers"]} == {"efficient-kan"}
    assert said["layers"][0]["edges"] == [20, 24]
    assert len(said["meta_learners"]) == 2
    assert said["parameters"] == done["parameters"]
    assert said["file_bytes"]["after"] == done["file_bytes"] == out.stat().st_size
    plain = efficient_kan.KAN([24, 20, 3])
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    assert said["file_bytes"]["before"] == (tmp_path / "plain.safetensors").stat().st_size
    assert said["parameters"]["before"] == sum(p.numel() for p in plain.parameters())
    model = kanmeta.convert(plain, hidden=8, dim_z=2, clusters="layer")
    assert said["training_bytes"]["after"] == kanmeta.summary(model).bytes_after


def test_inspect_of_tensors_alone(tmp_path: Path, trained: Path) -> None:
    said = record("inspect", trained, *SMALL)
    assert said["kind"] == "tensors"
    assert [layer["adapter"] for layer in said["layers"]] == ["efficient-kan"] * 2
    assert said["layers"][1]["edges"] == [3, 20]
    same = record("inspect", TARGET, *SMALL)
    for key in ("layers", "meta_learners"):
        strip = [{k: v for k, v in each.items() if k != "class"} for each in said[key]]
        assert strip == [{k: v for k, v in e.items() if k != "class"} for e in same[key]]
    assert said["file_bytes"]["before"] == same["file_bytes"]["before"] == trained.stat().st_size
    assert any("buffers" in note for note in said["notes"])
    torch.save({"epoch": 3, "state_dict": load_file(trained)}, tmp_path / "trained.pt")
    assert record("inspect", tmp_path / "trained.pt", *SMALL)["layers"] == said["layers"]


def test_inspect_of_other_tensors(tmp_path: Path) -> None:
    save_file(fast_kan.FastKAN([6, 5, 3]).state_dict(), tmp_path / "fast.safetensors")
    said = record("inspect", tmp_path / "fast.safetensors")
    assert [layer["adapter"] for layer in said["layers"]] == ["fast-kan"] * 2
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "linear.safetensors")
    answer = record("inspect", tmp_path / "linear.safetensors", code=1)
    assert "no layer that kanmeta knows among 2 tensors (bias, weight" in answer["message"]


def test_tables_fit_a_terminal(tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "out.safetensors"
    options = ["--fit-steps", "2", "--weights", trained]
    for command in (
        ["inspect", TARGET],
        ["convert", TARGET, out],
        ["info", out],
        ["distill", TARGET, out, *options, "--force"],
        ["bench", TARGET, "--input", "4,24", "--repeats", "1", "--budget", "20000"],
    ):
        shown = run(*command).stdout
        assert shown.strip(), command
        if command[0] != "convert":
            assert max(map(len, shown.splitlines())) <= 80
    assert str(out.name) in shown or "stream" in shown


def test_convert_with_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    before = torch.random.get_rng_state()
    for path, seed in ((a, "1"), (b, "1"), (c, "2")):
        run("convert", TARGET, path, *SMALL, "--seed", seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second, third = (load_file(path) for path in (a, b, c))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_convert_says_that_what_was_learnt_is_lost(tmp_path: Path, trained: Path) -> None:
    done = record("convert", TARGET, tmp_path / "out.safetensors", "--weights", trained, *SMALL)
    assert any("not kept: use distill" in note for note in done["notes"])


def test_distill_keeps_the_function(tmp_path: Path, trained: Path) -> None:
    x = torch.rand(300, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.zeros(300))
    steps = ["--fit-steps", "40", "--layer-steps", "20", "--steps", "20", "--dim-z", "9"]
    out, plain = tmp_path / "out.safetensors", tmp_path / "plain.safetensors"
    data = ["--data", tmp_path / "x.npz", "--key", "x", "--loss", "mse"]
    kan = efficient_kan.KAN([24, 20, 3])
    kan.load_state_dict(load_file(trained))
    np.save(tmp_path / "rows.npy", x.numpy())
    np.save(tmp_path / "classes.npy", kan(x).argmax(1).where(torch.arange(300) < 150, 0).numpy())
    test = ["--test", tmp_path / "rows.npy", tmp_path / "classes.npy"]
    done = record("distill", TARGET, out, "--weights", trained, *data, *steps, *test)
    assert done["report"]["output_error"] < 1e-3  # nine numbers an edge: exact to rounding
    before, after = done["accuracy"]["before"], done["accuracy"]["after"]
    assert 50 <= before < 100
    assert after == pytest.approx(before, abs=1)
    assert done["weights_bytes"] == trained.stat().st_size  # a safetensors file as well
    np.save(tmp_path / "classes.npy", np.zeros(299, dtype=np.int64))
    common = ("distill", TARGET, out, "--weights", trained, "--force", *test)
    assert "expected 300 integers" in " ".join(run(*common, code=1).output.split())
    record("materialize", out, plain, "--model", TARGET)
    same = efficient_kan.KAN([24, 20, 3])
    assert (same(x) - kan(x)).norm() > 0.5 * kan(x).norm()
    same.load_state_dict(load_file(plain))
    torch.testing.assert_close(same(x), kan(x), rtol=1e-3, atol=1e-3)


def test_distill_trains_codes_of_few_bits(tmp_path: Path, trained: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(-1, 1, (200, 24)))
    steps = ["--fit-steps", "5", "--layer-steps", "5", "--steps", "5", *SMALL]
    out = tmp_path / "out.safetensors"
    common = ["distill", TARGET, out, "--weights", trained, "--bits", "4", *steps]
    done = record(*common, "--data", tmp_path / "x.npy")
    assert done["report"]["stages"][-1]["name"].endswith("4 bits")
    assert any("only coefficients" in note for note in record(*common, "--force")["notes"])


def test_distill_with_made_up_inputs(tmp_path: Path, trained: Path) -> None:
    steps = ["--fit-steps", "5", "--layer-steps", "5", "--steps", "5", *SMALL]
    out = tmp_path / "out.safetensors"
    common = ["distill", TARGET, out, "--weights", trained, "--bits", "4", *steps]
    for loss in ([], ["--loss", "kl"]):
        done = record(*common, "--data", "normal", *loss, "--force")
        name = f"outputs ({loss[-1] if loss else 'mse'}), standard inputs"
        assert done["report"]["stages"][-1]["name"] == name
    assert done["notes"] == ["codes of 4 bits are not trained without inputs: --data FILE"]
    embedding = "tests.test_cli:embedded"
    torch.manual_seed(0)
    save_file(embedded().state_dict(), tmp_path / "embedded.safetensors")
    common = ["distill", embedding, out, "--weights", tmp_path / "embedded.safetensors", "--force"]
    done = record(*common, *steps, "--data", "normal")
    assert any(note.startswith("made-up inputs are left out") for note in done["notes"])
    refused = run(*common, "--data", "normal", "--key", "x", code=1)
    assert "leave it out for normal" in " ".join(refused.output.split())
    for words in (["--loss", "mse"], ["--key", "x"]):
        refused = run(*common, *words, code=1)
        assert "are for --data" in " ".join(refused.output.split())


def test_info_and_inspect_of_a_compact_file(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    run("convert", TARGET, out, *SMALL)
    said = record("info", out)
    assert (said["format"], said["edges"], said["prompt_bits"]) == (1, 24 * 20 + 20 * 3, None)
    assert said["file_bytes"] == out.stat().st_size
    assert said["layers"][0]["prompts"] == "F32"
    assert record("inspect", out) == {"kind": "compact"} | said
    run("convert", TARGET, out, *SMALL, "--bits", "3", "--force")
    said = record("info", out)
    assert (said["format"], said["compressed"], said["prompt_bits"]) == (3, True, 3)
    assert said["layers"][0]["prompts"] == "3-bit codes"
    run("convert", TARGET, out, *SMALL, "--dtype", "float16", "--force")
    assert record("info", out)["layers"][0]["prompts"] == "F16"


def test_bench_compares_all_modes() -> None:
    target = "recipes.reference.efficient_kan:KAN([64, 64, 64])"
    done = record("bench", target, "--input", "128,64", "--budget", "100000", "--repeats", "1")
    rows = done["modes"]
    assert [*rows] == ["as it is", "materialize", "regenerate", "stream", "auto"]
    assert rows["stream"]["peak_bytes"] < rows["as it is"]["peak_bytes"]
    assert rows["auto"]["peak_bytes"] < rows["materialize"]["peak_bytes"]
    assert all(row["seconds"] > 0 for row in rows.values())


def test_arguments_as_json_and_as_a_call(tmp_path: Path) -> None:
    name = "recipes.reference.efficient_kan:KAN"
    wanted = record("inspect", f"{name}([6, 5], grid_size=4)")["layers"]
    assert wanted[0]["dim_w"] == 8
    both = record("inspect", f"{name}([6, 5])", "--args", '{"grid_size": 4}')
    assert both["layers"] == wanted
    assert record("inspect", name, "--args", "[[6, 5]]")["layers"] != wanted


def test_own_layers_and_prints_of_the_users_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_layers.py").write_text(
        "import torch, kanmeta\n"
        "print('hello')\n"
        "class OwnLayer(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Parameter(torch.randn(40, 30, 6))\n"
        "    def forward(self, x):\n"
        "        powers = torch.stack([x**k for k in range(6)], -1)\n"
        "        return torch.einsum('nik,oik->no', powers, self.table)\n"
        "layer = OwnLayer()\n"
        "kanmeta.register_adapter(kanmeta.Adapter(name='own', class_names=('OwnLayer',),\n"
        "                                         slots=(kanmeta.Slot('table', 'o i k'),)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kanmeta.registry._registered", {})
    result = run("inspect", "own_layers:layer", "--json")
    assert "hello" in result.stderr
    assert json.loads(result.stdout)["layers"][0]["adapter"] == "own"
    said = record("inspect", "own_layers:layer", "--args", "[1]", code=1)
    assert "is a model already" in said["message"]


def test_the_session_on_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of docs/command_line.md, word for word, on small layers of the same names."""
    page = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
    commands = [line[2:] for line in page.splitlines() if line.startswith("$ kanmeta ")]
    assert {shlex.split(command)[1] for command in commands} == {*app.commands}
    monkeypatch.chdir(tmp_path)
    stand_ins.install(monkeypatch)
    save_file(efficient_kan.KAN([16, 24, 4]).state_dict(), tmp_path / "kan.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(-1, 1, (300, 16)))
    for command in commands:
        words = shlex.split(command)[1:]
        if words[0] == "distill":
            words += ["--fit-steps", "5", "--layer-steps", "5", "--steps", "5"]
        run(*words)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.safetensors")}
    assert sizes["plain.safetensors"] == sizes["kan.safetensors"]
    assert f"start.safetensors: {sizes['start.safetensors']:,} bytes" in page
