"""recipes.images_fc: runs, resuming, grids, what a result says of itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kanmeta
from recipes import images_fc, images_run, records, report, training
from recipes.data import load_images
from tests.small_images import write_data

CODE = {"commit": "0" * 40, "dirty": False}


def nothing(count: int) -> None:
    pass


def place(folder: Path, **changes: Any) -> images_run.Place:
    if not (folder / "data").exists():
        write_data(folder / "data")
    usual = images_run.Place(folder / "data", "cpu", folder, CODE, images_fc.PROTOCOL)
    return replace(usual, **changes)


def run_of(model: str, *, seed: int = 0, epochs: int = 3) -> images_run.Run:
    run = images_fc.single("single", model, "mnist", (32,), seed, epochs)
    return replace(run, settings=replace(run.settings, batch=40))  # the last step has fewer rows


def result_of(folder: Path, run: images_run.Run) -> dict[str, Any]:
    path = folder / "results" / "images_fc" / run.grid / f"{run.name}.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def weights_of(folder: Path, run: images_run.Run) -> Path:
    return folder / "runs" / "images_fc" / run.grid / f"{run.name}.safetensors"


@pytest.mark.parametrize("model", images_fc.MODELS)
def test_a_run_learns_and_says_where_its_result_is_from(tmp_path: Path, model: str) -> None:
    run = run_of(model, epochs=4)
    line = images_run.execute(place(tmp_path), run, nothing)
    result = result_of(tmp_path, run)
    assert f"{result['test_accuracy']:.2f} %" in line
    assert result["test_accuracy"] == result["curve"]["test_accuracy"][-1]
    losses = result["curve"]["train_loss"]
    assert len(losses) == len(result["curve"]["test_accuracy"]) == 4
    assert losses[-1] < losses[0]
    assert sum(result["parameters"].values()) == report.PAPER["mnist", (32,), model][0]
    assert result["parameters"]["frozen"] == (16 if "fast" in model else 0)
    assert result["config"] == run.config()
    assert result["config"]["settings"]["batch"] == 40
    assert result["protocol"] == list(images_fc.PROTOCOL)
    assert result["code"] == CODE
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["hardware"]["threads"] == torch.get_num_threads()
    assert result["data"]["name"] == "mnist"
    assert result["seconds"] > 0
    weights = weights_of(tmp_path, run)
    assert result["file_bytes"] == weights.stat().st_size
    again = images_run.build(replace(run, settings=replace(run.settings, convert=None)))
    if run.settings.convert is None:
        assert result["meta_learners"] == []
        again.load_state_dict(load_file(weights))
    else:
        assert [m["layers"] for m in result["meta_learners"]] == [2]
        kanmeta.load(again, weights)
    found = training.accuracy(again, training.Pixels.of(load_images("mnist", tmp_path / "data")))
    assert found == pytest.approx(result["test_accuracy"])


class KilledError(Exception):
    pass


def kill_after(epochs: int) -> Callable[[int], None]:
    seen = 0

    def count(number: int) -> None:
        nonlocal seen
        seen += number
        if seen == epochs:
            raise KilledError

    return count


@pytest.mark.parametrize("model", ["kan", "metakan"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, model: str) -> None:
    run = run_of(model)
    images_run.execute(place(tmp_path / "whole"), run, nothing)
    whole = result_of(tmp_path / "whole", run)
    there = place(tmp_path / "parts")
    with pytest.raises(KilledError):
        images_run.execute(there, run, kill_after(2))
    assert not (tmp_path / "parts" / "results").exists()  # a cancelled run has no result
    counted: list[int] = []
    images_run.execute(there, run, counted.append)
    assert counted == [2, 1]
    parts = result_of(tmp_path / "parts", run)
    assert parts["curve"] == whole["curve"]
    one, other = (load_file(weights_of(tmp_path / name, run)) for name in ("parts", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "parts" / "runs").rglob("*.pt"))


def test_a_finished_run_is_skipped_until_it_changes(tmp_path: Path) -> None:
    run, counted = run_of("kan", epochs=1), []
    images_run.execute(place(tmp_path), run, nothing)
    before = result_of(tmp_path, run)
    assert "done before" in images_run.execute(place(tmp_path), run, counted.append)
    assert counted == [1]
    assert result_of(tmp_path, run) == before
    changed = replace(run, settings=replace(run.settings, lr=3e-3))
    assert "done before" not in images_run.execute(place(tmp_path), changed, nothing)
    assert result_of(tmp_path, run)["config"]["settings"]["lr"] == 3e-3


@pytest.mark.parametrize("change", ["code", "settings", "data"])
def test_a_killed_run_starts_again_if_it_changed(tmp_path: Path, change: str) -> None:
    run, there = run_of("kan"), place(tmp_path)
    with pytest.raises(KilledError):
        images_run.execute(there, run, kill_after(2))
    if change == "code":
        there = replace(there, code={**CODE, "commit": "1" * 40})
    elif change == "settings":
        run = replace(run, settings=replace(run.settings, weight_decay=0.0))
    else:
        write_data(tmp_path / "other", train=97)
        there = replace(there, data=tmp_path / "other")
    counted: list[int] = []
    images_run.execute(there, run, counted.append)
    assert counted == [0, 1, 1, 1]


def test_seeds_differ_and_are_repeatable() -> None:
    first, again, other = (images_run.build(run_of("metakan", seed=s)) for s in (0, 0, 1))
    before = torch.random.get_rng_state()
    images_run.build(run_of("kan"))
    assert torch.equal(torch.random.get_rng_state(), before)
    x = torch.ones(2, 784)
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_rates_reach_the_right_parameters() -> None:
    run = run_of("metafastkan")
    model = images_run.build(run)
    settings = replace(
        run.settings,
        lr=1.0,
        prompt_lr=2.0,
        meta_lr=3.0,
        weight_decay=0.5,
        prompt_weight_decay=0.25,
    )
    groups = images_run.optimizer(model, settings).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[id(z)] for z in kanmeta.prompts(model).values()} == {2.0}
    assert {
        rates[id(p)] for m in kanmeta.meta_learners(model).values() for p in m.parameters()
    } == {3.0}
    assert rates[id(model.layers[0].layernorm.weight)] == 1.0
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    assert [group["weight_decay"] for group in groups] == [0.25, 0.5, 0.5][: len(groups)]


def test_grids() -> None:
    headline = images_fc.headline("fashion-mnist", (32,), 50)
    assert len(headline) == len({run.name for run in headline}) == 12
    collapse = images_fc.collapse("fashion-mnist", (32,), 2)
    assert len(collapse) == len({run.name for run in collapse}) == 81
    for run in collapse:  # convert's defaults but for dim_z
        assert run.settings.convert is not None
        assert list(run.settings.convert) == ["dim_z"]
    for key in report.PAPER:
        images_fc.single("single", key[2], key[0], key[1], 0, 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], processes: int) -> None:
    write_data(tmp_path / "data")
    arguments = ["--grid", "headline", "--dataset", "mnist", "--epochs", "1"]
    arguments += ["--data", str(tmp_path / "data"), "--out", str(tmp_path)]
    images_fc.main([*arguments, "--processes", str(processes)])
    assert len(list((tmp_path / "results" / "images_fc" / "headline").glob("*.json"))) == 12
    assert "mnist-32-metafastkan-s2: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--download"):
        images_fc.main(["--model", "kan", "--dataset", "mnist", "--data", str(tmp_path / "no")])


def test_code_state_is_about_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = records.code_state()
    assert set(state) == {"commit", "dirty"}
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    assert records.code_state() == {"commit": None, "dirty": None}
