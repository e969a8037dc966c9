"""recipes.images_fc: seeds, rates, grids, augmentation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kanmeta
from recipes import images_conv, images_fc, images_run, models
from recipes.data import load_images
from recipes.job import Job
from recipes.reference import wav_kan
from recipes.training import Pixels
from tests.small_images import write_cifar


def job_of(model: str, seed: int = 0, protocol: str = "fair") -> Job:
    jobs = images_fc.grid(protocol, "cpu")  # type: ignore[arg-type]
    return next(job for job in jobs if job.model == model and job.seed == seed)


def test_seeds_differ_and_are_repeatable() -> None:
    jobs = [job_of("MetaKAN", seed) for seed in (0, 0, 1)]
    first, again, other = (images_fc.model(job) for job in jobs)
    before = torch.random.get_rng_state()
    images_fc.model(job_of("KAN"))
    assert torch.equal(torch.random.get_rng_state(), before)
    x = torch.ones(2, 784)
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_rates_reach_the_right_parameters() -> None:
    job = job_of("MetaFastKAN")
    model = images_fc.model(job)
    settings = replace(
        images_run.Settings(**job.config["settings"]),
        lr=1.0,
        prompt_lr=2.0,
        meta_lr=3.0,
        weight_decay=0.5,
        prompt_weight_decay=0.25,
    )
    groups = models.optimizer(model, settings).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[id(z)] for z in kanmeta.prompts(model).values()} == {2.0}
    assert {
        rates[id(p)] for m in kanmeta.meta_learners(model).values() for p in m.parameters()
    } == {3.0}
    assert rates[id(model.layers[0].layernorm.weight)] == 1.0
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    assert [group["weight_decay"] for group in groups] == [0.25, 0.5, 0.5][: len(groups)]


def test_the_full_grid_is_three_tables_and_the_collapse_runs() -> None:
    jobs = [job for job in images_fc.grid("fair", "full") if job.seed == 0]
    assert len({(job.row, job.model) for job in jobs if job.row}) == 3 * 72
    collapse = [job for job in jobs if not job.row]
    assert len(collapse) == 27
    for job in collapse:  # convert's defaults but for dim_z
        assert list(job.config["settings"]["convert"]) == ["dim_z"]


def test_images_in_colour_are_shifted_and_mirrored_one_by_one(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10.npz")
    data = Pixels.of(load_images("cifar-10", tmp_path))
    image = torch.arange(3 * 32 * 32.0).reshape(1, 3, 32, 32) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changed = images_conv.augmentation(data)(image.flatten(1).repeat(64, 1))
    padded = torch.nn.functional.pad(image[0], [4] * 4)
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    seen = set()
    for one in changed.reshape(64, 3, 32, 32):
        plain = (windows == one).flatten(1).all(1).nonzero().flatten().tolist()
        mirrored = (windows == one.flip(2)).flatten(1).all(1).nonzero().flatten().tolist()
        assert len(plain) + len(mirrored) == 1
        seen.add((bool(mirrored), *plain, *mirrored))
    assert len(seen) > 32
    assert {mirrored for mirrored, _ in seen} == {True, False}


@pytest.mark.parametrize("size", [28, 32])
def test_colour_is_normalised_channel_by_channel(tmp_path: Path, size: int) -> None:
    write_cifar(tmp_path / "cifar-10.npz")
    images = load_images("cifar-10", tmp_path)
    images = images_run._resized(images, size) if size != 32 else images
    data = Pixels.of(images, validation=16)
    assert (data.train, data.validation, data.shape) == (80, 16, (3, size, size))
    x = data.inputs(data.part("train")).reshape(80, 3, -1)
    assert torch.allclose(x.mean((0, 2)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(x.std((0, 2)), torch.ones(3), atol=1e-3)
    rows = [data.part(name) for name in ("train", "validation", "test")]
    assert [len(data.labels[part]) for part in rows] == [80, 16, 40]


# torch asks what it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_wavelets_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    # What recipes compile for the CPU's own instructions, here for torch's operations: no compiler.
    fused = torch.compile(wav_kan.wavelet_sum, dynamic=True, backend="aot_eager")
    calls = []

    def counted(*args: Any) -> Tensor:
        calls.append(args)
        y: Tensor = fused(*args)
        return y

    monkeypatch.setattr(wav_kan, "_compiled_sum", counted)
    x = torch.linspace(-2, 2, 20).view(5, 4)
    found = []
    for compiled in (False, True):
        model = models.build("wavkan", (4, 3, 2), {}, {"execution": "regenerate"}, seed=0)
        for layer in model.layers:
            layer.compiled = compiled
        y = model(x)
        wanted = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.backward(y.square().sum())
        found.append([y, *(p.grad for p in wanted)])
    assert len(calls) == 2
    torch.testing.assert_close(*found)
    torch.compiler.reset()
