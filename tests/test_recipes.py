"""The recipes, on data sets small enough to be written by the tests."""

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import kanmeta
from recipes import data, demo, images_fc, images_run, records, report, training
from recipes.data import DataError, load_images, read_idx


def idx(tensor: Tensor) -> bytes:
    """The idx file of a uint8 tensor."""
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return b"\0\0\x08" + bytes([tensor.dim()]) + sizes + tensor.numpy().tobytes()


def digits(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``n`` images whose class can be told: a bright bar whose height is the label, on noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (n,), generator=generator, dtype=torch.uint8)
    images = torch.randint(0, 60, (n, 28, 28), generator=generator, dtype=torch.uint8)
    rows = torch.arange(28).view(1, 28, 1)
    bar = (rows // 2 == labels.view(-1, 1, 1) + 2).expand(n, 28, 28)
    return torch.where(bar, 250, images.int()).to(torch.uint8), labels


def write_data(folder: Path, *, zipped: bool = False, train: int = 96, test: int = 40) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, n, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = digits(n, seed)
        for kind, tensor in (("images-idx3", images), ("labels-idx1", labels)):
            content, name = idx(tensor), f"{part}-{kind}-ubyte"
            if zipped:
                content, name = gzip.compress(content, 1), f"{name}.gz"
            (folder / name).write_bytes(content)


# ------------------------------------------------------------------ data


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", ["FashionMNIST/raw", ""])
def test_images_are_found_and_read(tmp_path: Path, layout: str, zipped: bool) -> None:
    write_data(tmp_path / layout, zipped=zipped)
    images = load_images("fashion-mnist", tmp_path)
    expected, labels = digits(96, 0)
    assert torch.equal(images.train_images, expected)
    assert images.train_images.dtype == torch.uint8
    assert torch.equal(images.train_labels, labels.long())
    assert images.train_labels.dtype == torch.int64
    assert images.test_images.shape == (40, 28, 28)
    assert images.folder == tmp_path / layout


def test_fingerprint_tells_data_sets_apart(tmp_path: Path) -> None:
    write_data(tmp_path / "a")
    write_data(tmp_path / "b")
    write_data(tmp_path / "c", test=41)
    a, b, c = (load_images("mnist", tmp_path / name).fingerprint() for name in "abc")
    assert a == b != c


def test_debians_package_comes_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "debian")
    monkeypatch.setitem(data.DEBIAN, "fashion-mnist", tmp_path / "debian")
    assert load_images("fashion-mnist", tmp_path).folder == tmp_path / "debian"
    write_data(tmp_path)
    assert load_images("fashion-mnist", tmp_path).folder == tmp_path
    with pytest.raises(DataError, match="no mnist in any of"):
        load_images("mnist", tmp_path / "empty")


def test_missing_data_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DEBIAN, "fashion-mnist", tmp_path / "debian")
    with pytest.raises(DataError) as error:
        load_images("fashion-mnist", tmp_path)
    for part in ("--download", "--data", "apt-get install dataset-fashion-mnist", str(tmp_path)):
        assert part in str(error.value)
    with pytest.raises(DataError, match="there are fashion-mnist, mnist"):
        load_images("cifar", tmp_path)


def test_download_is_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def fetch(root: Path, download: bool) -> None:
        assert download
        write_data(root / "MNIST" / "raw")

    monkeypatch.setattr(datasets, "MNIST", fetch)
    assert load_images("mnist", tmp_path, download=True).folder == tmp_path / "MNIST" / "raw"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\0\0\x0d\x01" + bytes(8), "not an idx file of unsigned bytes"),
        (b"\0\0\x08\x00", "not an idx file"),
        (b"\0\0\x08\x03" + bytes(8), "not an idx file"),
        (b"<!DOCTYPE html>", "not an idx file"),
        (
            idx(torch.zeros(3, 4, dtype=torch.uint8))[:-1],
            r"11 bytes .* expected 12 for",
        ),
        (idx(torch.zeros(3, 4, dtype=torch.uint8)) + b"x", "13 bytes after the header"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)


@pytest.mark.parametrize("cut", [None, -9])
def test_broken_gzip_files_are_refused(tmp_path: Path, cut: int | None) -> None:
    content = idx(torch.zeros(3, 4, dtype=torch.uint8))
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content)[:cut] if cut else content)
    with pytest.raises(DataError, match="fetch it again"):
        read_idx(path)


def test_images_and_labels_must_fit(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    good = path.read_bytes()
    path.write_bytes(idx(torch.zeros(39, dtype=torch.uint8)))
    with pytest.raises(DataError, match=r"\[40, 28, 28\] and labels \[39\]"):
        load_images("mnist", tmp_path)
    path.write_bytes(good[:-1] + b"\x0b")
    with pytest.raises(DataError, match="labels go up to 11"):
        load_images("mnist", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="no t10k-labels-idx1-ubyte"):
        load_images("mnist", tmp_path)


# ------------------------------------------------------------------ training


@pytest.fixture
def pixels(tmp_path: Path) -> training.Pixels:
    write_data(tmp_path)
    return training.Pixels.of(load_images("mnist", tmp_path))


def test_inputs_are_normalised_by_the_training_set(pixels: training.Pixels) -> None:
    assert pixels.values.dtype == torch.uint8
    assert pixels.values.shape == (136, 784)
    x = pixels.inputs(slice(0, pixels.train))
    assert abs(float(x.mean())) < 1e-5
    assert abs(float(x.std(correction=0)) - 1) < 1e-5
    some = torch.tensor([3, 100])
    assert torch.equal(pixels.inputs(some)[0], x[3])


def test_accuracy_is_the_share_of_right_answers(pixels: training.Pixels) -> None:
    class Knows(nn.Module):
        """Reads the height of the bar; wrong on purpose where the label is 3."""

        def forward(self, x: Tensor) -> Tensor:
            bars = x.view(-1, 14, 56).mean(2)[:, 2:12]
            return torch.where(torch.arange(10) == 3, -math.inf, bars)

    labels = pixels.labels[pixels.train :]
    share = 100 * float((labels != 3).double().mean())
    assert 50 < share < 100
    assert training.accuracy(Knows(), pixels, batch=7) == pytest.approx(share)


class Recorder(nn.Linear):
    """A linear classifier that remembers the rows it was trained on."""

    def __init__(self) -> None:
        super().__init__(784, 10)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x)
        return super().forward(x)


def test_every_epoch_sees_every_image_once_in_its_own_order(pixels: training.Pixels) -> None:
    epochs = {}
    for seed in (0, 1):
        model = Recorder()
        training.fit(
            model, pixels, torch.optim.SGD(model.parameters()), epochs=2, batch=40, seed=seed
        )
        assert [len(x) for x in model.seen] == [40, 40, 16] * 2
        rows = torch.cat(model.seen)
        epochs |= {(seed, 0): rows[:96], (seed, 1): rows[96:]}
    expected = pixels.inputs(slice(0, 96))
    orders = set()
    for rows in epochs.values():
        position = torch.cdist(rows.double(), expected.double()).argmin(1)
        assert torch.equal(position.sort().values, torch.arange(96))
        orders.add(tuple(position.tolist()))
    assert len(orders) == 4


def test_rates_follow_one_cosine_over_all_steps(pixels: training.Pixels) -> None:
    model = Recorder()
    optimizer = torch.optim.SGD(
        [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.2}], 1.0
    )
    rates = []
    optimizer.register_step_post_hook(
        lambda self, args, kwargs: rates.append([group["lr"] for group in self.param_groups])
    )
    training.fit(model, pixels, optimizer, epochs=2, batch=40, seed=0)
    cosine = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates == [pytest.approx([c, 0.2 * c]) for c in cosine]


# ------------------------------------------------------------------ the runs of images_fc


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


# ------------------------------------------------------------------ report


def result(model: str, seed: int, accuracy: float, **code: Any) -> dict[str, Any]:
    return {
        "test_accuracy": accuracy,
        "parameters": {"trainable": 1000, "frozen": 16},
        "file_bytes": 54_321,
        "config": images_fc.single("headline", model, "mnist", (32,), seed, 5).config(),
        "code": CODE | code,
        "versions": {"torch": "2.9"},
        "hardware": {"name": "Chip", "threads": 1},
    }


def test_headline_table() -> None:
    results = [result("kan", seed, 90.0 + seed) for seed in range(3)] + [result("metakan", 0, 95.5)]
    table = report.headline_table(results)
    first, second = table.splitlines()[2:4]
    for part in ("[784, 32, 10]", "1,016", "54,321", "91.00 ± 1.00", "| 3 |", "228,714", "93.60"):
        assert part in first
    for part in ("converted", "| 95.50 |", "| 1 |", "27,968", "96.69"):
        assert part in second
    assert "not committed" not in table
    assert "by test accuracy with seed 0" in table
    dirty = report.headline_table([*results, result("metakan", 1, 95.0, dirty=True)])
    assert "1 of 5 runs are from code that was not committed" in dirty


def test_collapse_table() -> None:
    results = []
    for run, accuracy in zip(images_fc.collapse("mnist", (32,), 2), range(11, 92), strict=True):
        results.append(result("metakan", 0, accuracy) | {"config": run.config()})
    table = report.collapse_table(results)
    assert "9 of 81 runs collapsed (accuracy below 20 %" in table
    assert "ended at 11.00 %" in table
    assert "worst of 3 seeds" in table
    assert "| 0.001 | 0.0001 | 11.00 | 20.00 | 29.00 |" in table
    assert "no run" not in table
    assert "no run" in report.collapse_table(results[:10])


def test_readme_is_rewritten_and_checked(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    sections = "".join(
        f"text\n<!-- results:{name} -->\nold\n<!-- /results:{name} -->\n"
        for name in ("headline", "collapse")
    )
    readme.write_text(f"{sections}end\n")
    records.write_json(tmp_path / "results" / "headline" / "a.json", result("kan", 0, 90.0))
    arguments = ["--readme", str(readme), "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit, match="stale: run"):
        report.main([*arguments, "--check"])
    assert "old" in readme.read_text()
    report.main(arguments)
    text = readme.read_text()
    assert "old" not in text
    assert "90.00" in text
    assert text.endswith("<!-- /results:collapse -->\nend\n")
    report.main([*arguments, "--check"])
    report.main(arguments)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- results:a -->",
        "<!-- /results:a --><!-- results:a -->",
        "<!-- results:a --><!-- /results:a -->" * 2,
    ],
)
def test_broken_markers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        report.replace_section(text, "a", "new")


def test_result_files_are_strict_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(tmp_path / "a.json", {"loss": math.nan})
    assert not (tmp_path / "a.json").exists()


# ------------------------------------------------------------------ demo


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "data")
    demo.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "its 40 outputs equal those of the model that was saved, bit for bit" in printed
    assert "layers.1.prompts                         10 x 32 x 1" in printed
    lines = {line[:22].strip(): line[22:].split() for line in printed.splitlines()[-4:]}
    assert lines["trainable parameters"] == ["254,080", "25,769", "9.9x"]
    sizes = [(tmp_path / "out" / f"{n}.safetensors").stat().st_size for n in ("kan", "metakan")]
    assert lines["bytes on disk"][:2] == [f"{size:,}" for size in sizes]
    assert len(lines["test accuracy, %"]) == 2


def test_demo_fails_if_the_second_process_disagrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    wrong = torch.zeros(40, 10)
    monkeypatch.setattr(demo, "outputs_of_second_process", lambda *arguments: wrong)
    with pytest.raises(SystemExit, match="FAILED"):
        demo.main(["--data", str(tmp_path)])


def test_demo_takes_digits_where_there_is_no_fashion_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(data.DEBIAN, "fashion-mnist", tmp_path)
    images = demo.find_images("efficient-kan", tmp_path)
    assert images.name == "digits"
    assert "--data" in capsys.readouterr().err
    assert images.train_images.shape == (1437, 8, 8)
    assert images.test_images.shape == (360, 8, 8)
    assert images.train_images.max() == 240
    assert images.test_labels.bincount().min() > 20
