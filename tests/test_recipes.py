"""The shared parts of the recipes: jobs, resuming, protocols, results, command line."""

import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn

import kanmeta
from recipes import (
    functions,
    images_conv,
    images_fc,
    library,
    model_figures,
    pde,
    pde_second_order,
    records,
    results,
    symbolic,
    vit,
)
from recipes.data import load_images
from recipes.engine import default_device
from recipes.execute import execute, model_of, trained
from recipes.images_run import mixup
from recipes.job import PROFILES, PROTOCOLS, Job, Place, Task
from recipes.laplacian import edge_functions, layer_coefficients
from recipes.loop import train
from recipes.paper import cells
from recipes.training import Pixels, accuracy
from tests import upstream
from tests.small_images import write_cifar, write_data

CODE = {"commit": "0" * 40, "dirty": False}
TABLES = (functions, images_conv, images_fc, pde)
RECIPES = (*TABLES, pde_second_order, symbolic, vit)


def nothing(count: int) -> None:
    pass


def place(folder: Path, **changes: Any) -> Place:
    data = folder / "data"
    if not data.exists():
        write_data(data / "MNIST" / "raw")
        write_data(data / "FashionMNIST" / "raw")
        write_cifar(data / "cifar-10.npz")
    return replace(Place((data,), False, "cpu", "no", folder, CODE), **changes)


def smoke_jobs() -> list[Job]:
    jobs = []
    for recipe in RECIPES:
        seen = set()
        for job in recipe.grid("fair", "smoke"):
            if (job.name, job.variant) not in seen:
                jobs.append(job)
                seen.add((job.name, job.variant))
    return jobs


SMOKE = smoke_jobs()


@pytest.mark.parametrize("job", SMOKE, ids=lambda job: job.stem)
def test_smoke(tmp_path: Path, job: Job) -> None:
    there = place(tmp_path)
    if job.recipe == "symbolic" and sys.version_info >= (3, 13):
        with pytest.raises(SystemExit, match=r"needs Python 3\.12 or older"):
            execute(there, job, nothing)
        return
    line = execute(there, job, nothing)
    path = there.result(job)
    assert "fair" in path.name
    assert "smoke" in path.name
    result = json.loads(path.read_text())
    assert result["metric"] in line
    assert result["value"] is not None
    assert result["job"] == job.content()
    curve = result["curve"]
    assert len(curve["train_loss"]) == len(curve["validation"]) == job.epochs
    assert curve["test"] == []  # read once
    pick = max if "accuracy" in result["metric"] else min
    assert curve["validation"][result["best_epoch"] - 1] == pick(curve["validation"])
    assert bool(result["meta_learners"]) == job.model.startswith("Meta")
    assert result["peak_bytes"] > 4 * sum(result["parameters"].values())
    assert result["seconds"] > 0
    assert result["code"] == CODE
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["hardware"]["threads"] == torch.get_num_threads()
    assert result["notes"]
    if job.variant == "second-order":  # no step makes it worse on the same points
        losses = curve["train_loss"]
        assert losses[-1] < losses[0] or job.recipe == "pde_second_order"
    assert str(tmp_path) not in path.read_text()  # nothing about the machine's folders
    assert not list((tmp_path / "runs").rglob("*.pt"))
    if job.recipe == "symbolic":
        assert "x_" in result["formula"]
        assert result["formula_mse"] is not None


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.__name__)
def test_smoke_of_the_papers_protocol(tmp_path: Path, recipe: Any) -> None:
    if recipe is symbolic and sys.version_info >= (3, 13):
        pytest.skip("pykan 0.2.8's symbolic_formula needs Python 3.12 or older")
    job = next(j for j in recipe.grid("paper", "smoke") if j.model.startswith("Meta"))
    there = place(tmp_path)
    execute(there, job, nothing)
    assert ".paper." in there.result(job).name
    result = json.loads(there.result(job).read_text())
    test = result["curve"]["test"]
    assert len(test) == job.epochs
    assert result["curve"]["validation"] == []
    best = (max if "accuracy" in result["metric"] else min)(test)
    assert result["value"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    ("environment", "gpus", "device"),
    [
        ({}, True, "cpu"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False, "cpu"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, True, "cuda"),
        ({"WORLD_SIZE": "2"}, True, "cuda"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}, True, "cpu"),
    ],
)
def test_the_gpu_is_used_where_accelerate_launches(
    environment: dict[str, str], gpus: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    assert default_device() == device


def test_a_recipe_runs_in_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    job, there = fc_job(epochs=2), place(tmp_path)
    execute(there, job, nothing)
    one = json.loads(there.result(job).read_text())
    # What accelerate launch starts on a machine with two GPUs.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2"]
    command += ["-m", "recipes.images_fc", "--profile", "smoke", "--only", job.name]
    command += ["--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "two")]
    command += ["--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (file,) = (tmp_path / "two" / "results" / "images_fc").glob("*.json")
    two = json.loads(file.read_text())
    assert two["execution"] == {"precision": "no", "compiled": False, "processes": 2}
    assert two["curve"]["train_loss"] == pytest.approx(one["curve"]["train_loss"], rel=1e-3)


def test_a_recipe_leaves_the_group_of_processes(tmp_path: Path) -> None:
    job, there = fc_job(epochs=1), place(tmp_path)
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    command = ["--profile", "smoke", "--only", job.name, "--data-root", str(there.data[0])]
    images_fc.main([*command, "--out", str(tmp_path / "out")])
    assert not distributed.is_initialized()


def test_a_killed_run_in_another_precision_starts_again(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    job, there = fc_job(), place(tmp_path)
    with pytest.raises(KilledError):
        execute(replace(there, precision="bf16"), job, kill_after(2))
    counted: list[int] = []
    execute(there, job, counted.append)
    assert counted == [0, 1, 1, 1]


def test_finished_results_are_of_jobs_that_there_are() -> None:
    folder = Path(__file__).parents[1] / "results"
    for recipe in RECIPES:
        name = recipe.__name__.removeprefix("recipes.")
        grid = {job.stem: job.content() for job in recipe.grid("fair", "cpu")}
        for path in (folder / name).glob("*.fair.cpu.*.json"):
            assert json.loads(path.read_text())["job"] == grid[path.stem], path.name


def test_a_result_in_another_precision_is_not_this_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    job, there = fc_job(epochs=1), place(tmp_path)
    execute(there, job, nothing)
    assert "done before" in execute(there, job, nothing)
    half = replace(there, precision="bf16")
    assert "done before" not in execute(half, job, nothing)
    assert json.loads(there.result(job).read_text())["execution"]["precision"] == "bf16"


def test_half_precision_needs_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, there = fc_job(epochs=1), place(tmp_path, precision="bf16")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(SystemExit, match="pip install accelerate"):
            execute(there, job, nothing)
    pytest.importorskip("accelerate")
    execute(there, job, nothing)
    half = json.loads(there.result(job).read_text())["curve"]["train_loss"]
    whole = place(tmp_path / "whole")
    execute(whole, job, nothing)
    exact = json.loads(whole.result(job).read_text())["curve"]["train_loss"]
    assert half != exact
    assert half == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.__name__)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_grids(recipe: Any, protocol: Any, profile: Any) -> None:
    jobs = recipe.grid(protocol, profile)
    assert len({job.stem for job in jobs}) == len(jobs)
    for job in jobs:
        assert job.recipe == recipe.__name__.rpartition(".")[2]
        assert not job.row or (job.row, job.model) in cells()
        assert job.content()["config"] == json.loads(json.dumps(job.content()["config"]))


@pytest.mark.parametrize("recipe", TABLES, ids=lambda r: r.__name__)
def test_fair_pairs_differ_in_the_meta_learner_only(recipe: Any) -> None:
    jobs = {(j.row, j.model): j for j in recipe.grid("fair", "smoke") if j.row and not j.variant}
    pairs = [(jobs[row, model.removeprefix("Meta")], job) for (row, model), job in jobs.items()]
    pairs = [(plain, meta) for plain, meta in pairs if plain is not meta]
    assert pairs
    for plain, meta in pairs:
        assert plain.epochs == meta.epochs
        one, other = model_of(plain), model_of(meta)
        kanmeta.materialize(other)
        assert {k: v.shape for k, v in one.state_dict().items()} == {
            k: v.shape for k, v in other.state_dict().items()
        }
        generated = {
            f"{layer}.{part}"
            for layer in dict(one.named_modules())
            for part in (
                "base_weight",
                "spline_weight",
                "base_linear.weight",
                "spline_linear.weight",
                "scale",
                "translation",
                "wavelet_weights",
            )
        }
        for name, tensor in one.state_dict().items():
            if name not in generated and "conv" not in name and "poly" not in name:
                assert torch.equal(tensor, other.state_dict()[name]), name


def fc_job(**changes: Any) -> Job:
    jobs = images_fc.grid(changes.pop("protocol", "fair"), "smoke")
    job = next(j for j in jobs if j.name == "fashion-mnist-32-G5-metakan")
    return replace(job, **{"epochs": 3, **changes})


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


def resumable() -> list[Job]:
    function = next(j for j in functions.grid("fair", "smoke") if j.model == "MetaKAN")
    equation = next(j for j in pde.grid("fair", "smoke") if j.model == "KAN")
    conv = next(j for j in images_conv.grid("fair", "smoke") if j.name.startswith("4L-mnist"))
    return [
        fc_job(),
        replace(function, epochs=3),
        replace(equation, epochs=3),
        replace(conv, epochs=3),
        replace(vit_job(), epochs=3),
    ]


def vit_job() -> Job:
    job = next(j for j in vit.grid("fair", "smoke") if j.model == "MetaViT")
    settings = job.config["settings"] | {"batch": 16}  # an average begins after two steps
    return replace(job, config={**job.config, "settings": settings})


@pytest.mark.parametrize("job", resumable(), ids=lambda job: job.stem)
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, job: Job) -> None:
    whole, parts = place(tmp_path / "whole"), place(tmp_path / "parts")
    execute(whole, job, nothing)
    with pytest.raises(KilledError):
        execute(parts, job, kill_after(2))
    assert not parts.result(job).exists()  # a cancelled run has no result
    counted: list[int] = []
    execute(parts, job, counted.append)
    assert counted == [2, 1]
    one, other = (json.loads(p.result(job).read_text()) for p in (whole, parts))
    assert one["curve"] == other["curve"]
    assert one["value"] == other["value"]
    one, other = (load_file(p.working(job, ".safetensors")) for p in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_skipped_until_it_changes(tmp_path: Path) -> None:
    job, there, counted = fc_job(epochs=1), place(tmp_path), []
    execute(there, job, nothing)
    before = there.result(job).read_text()
    assert "done before" in execute(there, job, counted.append)
    assert counted == [1]
    assert there.result(job).read_text() == before
    settings = job.config["settings"] | {"lr": 3e-3}
    changed = replace(job, config={**job.config, "settings": settings})
    assert "done before" not in execute(there, changed, nothing)
    assert json.loads(there.result(job).read_text())["job"]["config"]["settings"]["lr"] == 3e-3


@pytest.mark.parametrize("change", ["code", "settings", "data"])
def test_a_killed_run_starts_again_if_it_changed(tmp_path: Path, change: str) -> None:
    job, there = fc_job(), place(tmp_path)
    with pytest.raises(KilledError):
        execute(there, job, kill_after(2))
    if change == "code":
        there = replace(there, code={**CODE, "commit": "1" * 40})
    elif change == "settings":
        settings = job.config["settings"] | {"weight_decay": 0.5}
        job = replace(job, config={**job.config, "settings": settings})
    else:
        write_data(tmp_path / "other", train=97)
        there = replace(there, data=(tmp_path / "other",))
    counted: list[int] = []
    execute(there, job, counted.append)
    assert counted == [0, 1, 1, 1]


class Scripted:
    """A task whose scores are given, to see which epoch counts and what is read."""

    def __init__(self, validation: list[float], test: list[float]) -> None:
        self.model = nn.Linear(1, 1)
        self.reads: list[str] = []
        self.scores = {"validation": validation, "test": test}
        self.now = -1

    def epoch(self, number: int) -> float:
        self.now = number
        nn.init.constant_(self.model.weight, number)
        return 1.0

    def score(self, part: str) -> float:
        self.reads.append(part)
        return self.scores[part][int(self.model.weight.item())]

    def task(self, higher: bool) -> Task:
        optimizer = torch.optim.SGD(self.model.parameters())
        return Task(
            self.model,
            optimizer,
            self.epoch,
            self.score,
            lambda m: m.weight.sum(),
            "score",
            higher,
            {},
            (),
        )


@pytest.mark.parametrize(("higher", "best"), [(True, 1), (False, 2)])
def test_fair_reads_the_test_data_once(higher: bool, best: int) -> None:
    scripted = Scripted([2, 3, 1], [10, 20, 30])
    value, curve = train(scripted.task(higher), protocol="fair", epochs=3)
    assert scripted.reads == ["validation"] * 3 + ["test"]
    assert curve.epoch == best
    assert value == [10, 20, 30][best]
    assert scripted.model.weight.item() == best


def test_paper_takes_the_best_epoch_on_the_test_data() -> None:
    scripted = Scripted([], [10, 30, 20])
    value, curve = train(scripted.task(True), protocol="paper", epochs=3)
    assert scripted.reads == ["test"] * 3
    assert (value, curve.epoch, curve.test) == (30, 1, [10, 30, 20])


def test_what_is_not_finite_is_none_and_never_the_best() -> None:
    scripted = Scripted([float("nan"), 5, float("inf")], [1, 2, 3])
    value, curve = train(scripted.task(False), protocol="fair", epochs=3)
    assert curve.validation == [None, 5, None]
    assert (value, curve.epoch) == (2, 1)


def test_the_saved_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    job, there = fc_job(), place(tmp_path)
    execute(there, job, nothing)
    result = json.loads(there.result(job).read_text())
    again = trained(job, there)
    data = Pixels.of(load_images("fashion-mnist", there.data), "cpu", 8, images_fc.SMOKE_IMAGES)
    assert accuracy(again, data) == pytest.approx(result["value"])


def test_a_running_average_is_what_is_judged_and_kept(tmp_path: Path) -> None:
    job, there = replace(vit_job(), epochs=2), place(tmp_path)
    task = vit.task(job, there)
    assert task.average is not None
    task.epoch(0)
    pairs = list(zip(task.average.parameters(), task.model.parameters(), strict=True))
    assert not all(torch.equal(average, now) for average, now in pairs)  # it lags behind
    before = task.score("test")
    for _, now in pairs:
        torch.nn.init.zeros_(now)
    assert task.score("test") == before
    value, _ = train(task, protocol="fair", epochs=2)
    assert all(torch.equal(average, kept) for average, kept in pairs)
    assert task.score("test") == value


def test_a_running_average_goes_on_after_a_kill(tmp_path: Path) -> None:
    def made() -> Task:
        average = nn.Linear(1, 1)
        nn.init.zeros_(average.weight)

        def epoch(number: int) -> float:
            nn.init.constant_(average.weight, average.weight.item() + 1)
            return 1.0

        def score(part: str) -> float:
            return average.weight.item()

        return replace(Scripted([], []).task(True), average=average, epoch=epoch, score=score)

    options: dict[str, Any] = {"protocol": "fair", "epochs": 3, "resume": tmp_path / "state.pt"}
    with pytest.raises(KilledError):
        train(made(), count=kill_after(2), **options)
    value, _ = train(made(), **options)
    assert value == 3


def test_mixed_images_keep_their_sum_and_labels_become_shares() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(6, 3 * 4 * 4), torch.arange(6) % 3
    mixed, target = mixup(0.2, (3, 4, 4), 3)(x, labels)
    assert mixed.shape == x.shape
    assert not torch.equal(mixed, x)
    torch.testing.assert_close(mixed.sum(0), x.sum(0))
    torch.testing.assert_close(target.sum(1), torch.ones(6))
    torch.testing.assert_close(target.sum(0), torch.full((3,), 2.0))


DRAWN = [("3", "functions", "I.12.11-G5-metakan"), ("10", "functions", "I.12.11-G5-metakan")]
DRAWN += [("8", "pde", "poisson-20d-kan"), ("7", "images_fc", "fashion-mnist-32-G5-metakan")]


@pytest.mark.parametrize(("figure", "recipe", "name"), DRAWN)
def test_figures_of_trained_models(tmp_path: Path, figure: str, recipe: str, name: str) -> None:
    there = place(tmp_path)
    arguments = ["--figure", figure, "--recipe", recipe, "--only", name, "--profile", "smoke"]
    arguments += ["--out", str(tmp_path), "--data-root", str(there.data[0])]
    with pytest.raises(SystemExit, match=f"run python -m recipes.{recipe} --protocol fair"):
        model_figures.main(arguments)
    job = next(job for job in SMOKE if job.recipe == recipe and job.name == name)
    execute(there, job, nothing)
    model_figures.main(arguments)
    drawing = (tmp_path / "runs" / "figures" / f"figure{figure}-{job.stem}.svg").read_text()
    assert "<svg" in drawing
    assert job.stem in drawing


def test_functions_of_edges_add_up_to_the_layer() -> None:
    model = model_of(next(j for j in SMOKE if j.name == "I.12.11-G5-metakan"))
    layer, weight = next(layer_coefficients(model))
    x = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)
    curves = edge_functions(layer, weight, x)
    rows = x.unsqueeze(1).expand(-1, weight.shape[1])
    assert torch.allclose(curves.sum(1), layer(rows) - layer.bias)


@pytest.mark.parametrize("processes", [1, 2])
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], processes: int) -> None:
    arguments = ["--profile", "smoke", "--only", "I.12.11-*", "--out", str(tmp_path)]
    arguments += ["--variant", "all"]
    functions.main([*arguments, "--list"])
    listed = capsys.readouterr().out.split()
    kinds = ("kan", "metakan", "metakan.wider", "kan.second-order", "metakan.second-order")
    assert listed == [f"I.12.11-G5-{kind}.fair.smoke.s0" for kind in kinds]
    functions.main([*arguments, "--processes", str(processes)])
    files = (tmp_path / "results" / "functions").glob("*.json")
    assert sorted(path.stem for path in files) == sorted(listed)
    assert f"{listed[0]}: " in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["", "longer", "tuned"])
def test_variants_are_chosen_by_name(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    images_fc.main(["--list", "--only", "mnist-32-c6-*kan", "--seeds", "1", "--variant", variant])
    middle = f".{variant}" if variant else ""
    kinds = ("fastkan", "metafastkan")
    listed = [f"mnist-32-c6-{kind}{middle}.fair.cpu.s1" for kind in kinds]
    assert capsys.readouterr().out.split() == listed


def test_longer_runs_differ_in_epochs_only() -> None:
    jobs = images_fc.grid("fair", "cpu")
    usual = {(j.name, j.seed): j for j in jobs if not j.variant}
    longer = [j for j in jobs if j.variant == "longer"]
    assert len(longer) == 3 * len({j.row for j in usual.values() if j.row}) * 2 > 0
    for job in longer:
        assert job.epochs == 20
        assert replace(job, epochs=5, variant="") == usual[job.name, job.seed]


def test_tuned_runs_differ_from_longer_ones_in_settings_only() -> None:
    jobs = images_fc.grid("fair", "cpu")
    longer = {(j.name, j.seed): j for j in jobs if j.variant == "longer"}
    tuned = [j for j in jobs if j.variant == "tuned"]
    assert {j.model for j in tuned} == {"FastKAN", "MetaFastKAN"}
    for job in tuned:
        usual = longer[job.name, job.seed]
        changed = job.config["settings"]
        assert replace(job, variant="longer", config=usual.config) == usual
        assert changed["weight_decay"] == (1.0 if job.model == "FastKAN" else 1e-4)
        assert changed["options"]["num_grids"] == usual.config["settings"]["options"]["num_grids"]
        if job.model == "MetaFastKAN":
            assert changed["convert"] == usual.config["settings"]["convert"] | {"dim_z": 2}
            assert (changed["meta_lr"], changed["prompt_weight_decay"]) == (4e-3, 0.5)
            assert images_fc.model(job).layers[0].spline_linear.weight.shape[0] == 32


def test_command_line_errors(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no job matches --only nothing"):
        functions.main(["--only", "nothing"])
    with pytest.raises(SystemExit, match="leave --precision out"):
        functions.main(["--precision", "bf16"])
    arguments = ["--profile", "smoke", "--only", "appendix-b-kan", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="leave --device out"):
        symbolic.main([*arguments, "--device", "cuda"])
    arguments = ["--profile", "smoke", "--only", "mnist-*", "--data-root", str(tmp_path)]
    with pytest.raises(SystemExit, match="--download"):
        images_fc.main([*arguments, "--out", str(tmp_path)])


def test_a_cluster_runs_the_same_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit")
    arguments = ["--profile", "smoke", "--only", "I.12.11-G5-kan", "--submitit", "debug"]
    with warnings.catch_warnings():  # its debugging executor leaves log files open
        warnings.simplefilter("ignore", ResourceWarning)
        functions.main([*arguments, "--out", str(tmp_path)])
        gc.collect()
    assert "I.12.11-G5-kan.fair.smoke.s0: " in capsys.readouterr().out


def test_code_state_is_about_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = records.code_state()
    assert set(state) == {"commit", "dirty"}
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    assert records.code_state() == {"commit": None, "dirty": None}


def test_layers_of_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.FOLDER, "")  # main sets it
    file = tmp_path / "up" / "efficient-kan" / "src" / "efficient_kan" / "kan.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from recipes.reference import efficient_kan as ours\n"
        "class KANLinear(ours.KANLinear):\n"
        "    def forward(self, x):\n"
        "        return 2 * super().forward(x)\n"
        "class KAN(ours.KAN):\n"
        "    pass\n"
    )
    options = ["--only", "f2-n10-kan", "--profile", "smoke", "--out", str(tmp_path)]
    functions.main([*options, "--library", str(tmp_path / "up")])
    functions.main(options)
    folder = tmp_path / "results" / "functions"
    real, ours = (
        json.loads((folder / f"f2-n10-kan{kind}.fair.smoke.s0.json").read_text())
        for kind in (".library", "")
    )
    assert real["job"]["variant"] == "library"
    assert "variant" not in ours["job"]
    assert real["value"] != ours["value"]
    found = results.by_cell([real, ours])
    row = [c for c in cells().values() if (c.row, c.model) == ("T4|f2|n10", "KAN")]
    assert "fair, library: " in results.columns(row[0], found)["remarks"]
    assert sorted(kind for _, _, kind in found) == ["fair", "fair, library"]


@pytest.mark.parametrize("base", library.constructors(Path()))
def test_real_libraries_make_the_models_of_the_recipes(base: str) -> None:
    if not upstream.AVAILABLE:
        pytest.skip(upstream.HOW)
    made = library.constructors(Path(str(upstream.FOLDER)))[base]
    model = made((1, 3), 4) if base.endswith("Conv") else made((5, 40, 3))
    assert not type(next(iter(model.layers))).__module__.startswith("recipes")
    kanmeta.convert(model, hidden=2)
    model.eval()(torch.rand(2, 1, 28, 28) if base.endswith("Conv") else torch.rand(2, 5))


@pytest.mark.parametrize("recipe", [pde_second_order, symbolic, vit], ids=lambda r: r.__name__)
def test_library_is_refused_where_it_would_change_nothing(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no --library: leave it out"):
        recipe.main(["--library", str(tmp_path), "--list"])


def test_library_goes_with_no_other_variant(tmp_path: Path) -> None:
    for variant in ("longer", "library"):
        with pytest.raises(SystemExit, match="leave --variant out"):
            images_fc.main(["--library", str(tmp_path), "--variant", variant, "--list"])
