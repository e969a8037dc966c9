"""save and load: round trips through a real file and a second process; writing."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from recipes.reference.efficient_kan import KAN, KANLinear
from recipes.reference.fast_kan import FastKANLayer
from tests.cases import CASES, EXAMPLE, Case, case, same_state, saved

ROOT = Path(__file__).parents[1]


SECOND_PROCESS = """
import sys, torch, kanmeta
from pathlib import Path
from tests.cases import CASES
for c in (c for c in CASES if c.available):
    folder = Path(sys.argv[1]) / c.name
    model = c.model(torch.float32, seed=99)
    kanmeta.load(model, folder / "model.safetensors", adapters=c.adapters)
    with torch.no_grad():
        torch.save(c.output(model(c.x(dtype=torch.float32))), folder / "y.pt")
"""


@pytest.fixture(scope="module")
def second_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, nn.Module]]:
    """Every case saved here and loaded by one other process, which stored the outputs."""
    folder, models = tmp_path_factory.mktemp("saved"), {}
    for c in (c for c in CASES if c.available):
        (folder / c.name).mkdir()
        models[c.name], _ = saved(folder / c.name, c, clusters="layer", dim_z=2)
    command = [sys.executable, "-c", SECOND_PROCESS, str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return folder, models


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_round_trip_in_a_second_process_is_bit_identical(
    c: Case, second_process: tuple[Path, dict[str, nn.Module]]
) -> None:
    folder, models = second_process
    if not c.available:
        c.model()  # skips
    with torch.no_grad():
        expected = c.output(models[c.name](c.x(dtype=torch.float32)))
    assert torch.equal(torch.load(folder / c.name / "y.pt"), expected)
    path = folder / c.name / "model.safetensors"
    stored = sum(t.numel() for t in load_file(path).values())
    assert path.stat().st_size <= 4 * stored + 16 * 1024
    assert stored == sum(t.numel() for t in models[c.name].state_dict().values())


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_load_gives_a_model_that_trains_and_materializes(c: Case, tmp_path: Path) -> None:
    model, path = saved(tmp_path, c)
    fresh, x = c.model(torch.float32, seed=99), c.x(dtype=torch.float32)
    assert kanmeta.load(fresh, path, adapters=c.adapters) is fresh
    assert list(fresh.state_dict()) == list(model.state_dict())
    assert len(kanmeta.meta_learners(fresh)) == 1
    y = c.output(fresh(x))
    y.sum().backward()
    assert all(z.grad is not None for z in kanmeta.prompts(fresh).values())
    kanmeta.materialize(fresh)
    assert torch.equal(c.output(fresh(x)), y)
    again = tmp_path / "again.safetensors"
    kanmeta.save(c.convert(fresh), again)


def test_shared_and_separate_meta_learners_survive(tmp_path: Path) -> None:
    sizes = [20, 30, 40, 30, 20]
    model = KAN(sizes, enable_standalone_scale_spline=False)
    groups = [["layers.0", "layers.2"], ["layers.1", "layers.3"]]
    kanmeta.convert(model, clusters=groups)
    path = tmp_path / "m.safetensors"
    kanmeta.save(model, path)
    fresh = kanmeta.load(KAN(sizes, enable_standalone_scale_spline=False), path)
    metas = list(kanmeta.meta_learners(fresh))
    assert metas == ["layers.0", "layers.1"]
    x = torch.rand(3, 20)
    assert torch.equal(fresh(x), model(x))
    for first, second in (("layers.0", "layers.2"), ("layers.1", "layers.3")):
        a, b = fresh.get_submodule(first), fresh.get_submodule(second)
        assert a._kanmeta.meta_learner is b._kanmeta.meta_learner


class Reversed(nn.Module):
    """Registers first the layer it uses last."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = KANLinear(20, 10), KANLinear(30, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_the_owner_of_a_meta_learner_stays_its_owner(tmp_path: Path) -> None:
    model, path = kanmeta.convert(Reversed()), tmp_path / "m.safetensors"
    assert list(kanmeta.meta_learners(model)) == ["first"]
    kanmeta.save(model, path)
    fresh = kanmeta.load(Reversed(), path)
    assert list(kanmeta.meta_learners(fresh)) == ["first"]
    assert list(fresh.state_dict()) == list(model.state_dict())
    x = torch.rand(3, 30)
    assert torch.equal(fresh(x), model(x))


def test_narrow_storage_and_loading_into_another_dtype(tmp_path: Path) -> None:
    c = case("efficient-kan-no-scaler")
    model, path = saved(tmp_path, c)
    half = tmp_path / "half.safetensors"
    kanmeta.save(model, half, dtype=torch.float16)
    assert half.stat().st_size < path.stat().st_size
    assert load_file(half)["layers.0.prompts"].dtype == torch.float16
    x = c.x()
    wide = kanmeta.load(c.model(torch.float64), half)
    assert wide(x).dtype == torch.float64
    torch.testing.assert_close(wide(x), model.double()(x), rtol=1e-2, atol=1e-2)


def test_tied_tensors_outside_the_layers(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "kan": KAN([20, 30])})
        model["b"].weight = model["a"].weight
        return model

    model = build()
    kanmeta.convert(model)
    kanmeta.save(model, tmp_path / "m.safetensors")
    fresh = kanmeta.load(build(), tmp_path / "m.safetensors")
    assert fresh["b"].weight is fresh["a"].weight
    assert torch.equal(fresh["a"].weight, model["a"].weight)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = saved(tmp_path)
    before = path.read_bytes()

    def half_written(tensors: object, name: Path, metadata: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("kanmeta.checkpoint.save_file", half_written)
    with pytest.raises(OSError, match="no space"):
        kanmeta.save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_missing_folder_and_unconverted_model(tmp_path: Path) -> None:
    model, _ = saved(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        kanmeta.save(model, tmp_path / "nowhere" / "m.safetensors")
    with pytest.raises(errors.NothingToConvertError, match=r"kanmeta\.convert"):
        kanmeta.save(case(EXAMPLE).model(), tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_links_and_permissions_are_kept(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    path.chmod(0o640)
    link = tmp_path / "latest"
    link.symlink_to(path)
    kanmeta.save(model, link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640


class Odd(nn.Module):
    def get_extra_state(self) -> object:
        return "not a tensor"

    def set_extra_state(self, state: object) -> None: ...


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(KAN([20, 30]), Odd())
    kanmeta.convert(model)
    with pytest.raises(errors.CheckpointError, match="extra_state"):
        kanmeta.save(model, tmp_path / "m.safetensors")


def test_no_pickle_is_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for module, name in (
        (pickle, "dump"),
        (pickle, "dumps"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
        (torch, "save"),
    ):
        monkeypatch.setattr(module, name, refuse)
    _, path = saved(tmp_path)
    kanmeta.load(case(EXAMPLE).model(torch.float32), path)


def test_saving_does_not_change_the_model(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    state = copy.deepcopy(model.state_dict())
    first = path.read_bytes()
    kanmeta.save(model, path)
    assert path.read_bytes() == first  # and gives the same file
    assert same_state(model, state)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, "float16", 16])
def test_only_floating_point_storage(dtype: object, tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(errors.CheckpointError, match=r"floating-point torch\.dtype"):
        kanmeta.save(model, path, dtype=dtype)  # type: ignore[arg-type]
    assert path.read_bytes() == before


class Twice(nn.Module):
    """One layer under two names, and one of a layer's children under a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a = FastKANLayer(20, 20)
        self.b, self.child = self.a, self.a.base_linear

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_a_layer_under_several_names(tmp_path: Path) -> None:
    model, x = kanmeta.convert(Twice()), torch.rand(3, 20)
    kanmeta.save(model, tmp_path / "m.safetensors")
    fresh = kanmeta.load(Twice(), tmp_path / "m.safetensors")
    assert torch.equal(fresh(x), model(x))
    assert fresh.a is fresh.b
    block = nn.Sequential(KANLinear(20, 20))
    model = kanmeta.convert(nn.Sequential(block, block))
    kanmeta.save(model, tmp_path / "m.safetensors")
    block = nn.Sequential(KANLinear(20, 20))
    fresh = kanmeta.load(nn.Sequential(block, block), tmp_path / "m.safetensors")
    assert torch.equal(fresh(x), model(x))


def test_frozen_models_stay_frozen_and_files_are_readable(tmp_path: Path) -> None:
    model = kanmeta.convert(KAN([20, 30, 10]).requires_grad_(False))
    path = tmp_path / "m.safetensors"
    kanmeta.save(model, path)
    fresh = kanmeta.load(KAN([20, 30, 10]).requires_grad_(False), path)
    assert not any(p.requires_grad for p in fresh.parameters())
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
