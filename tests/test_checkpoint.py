"""save and load: round trips through a real file and a second process, and bad files."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from recipes.reference.efficient_kan import KAN, KANLinear
from tests.cases import CASES, Case, case

ROOT = Path(__file__).parents[1]
EXAMPLE = "fast-kan-base-norm"


def saved(tmp_path: Path, c: Case | None = None, **kwargs: object) -> tuple[nn.Module, Path]:
    c = c or case(EXAMPLE)
    model = c.convert(c.model(torch.float32), **kwargs)
    with torch.no_grad():  # not what a seed would give
        for p in model.parameters():
            if p.is_floating_point():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(8)) * 0.01)
    path = tmp_path / "model.safetensors"
    kanmeta.save(model, path)
    return model, path


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


# --- bad files ------------------------------------------------------------------------------


def rewrite(path: Path, change: object) -> None:
    """Write the file again with another kanmeta header."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["kanmeta"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header)  # type: ignore[operator]
    save_file(tensors, path, {"kanmeta": json.dumps(header)})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def garbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20:40] = b"\xff" * 20
    path.write_bytes(data)


def plain_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(3)}, path)


def pickle_file(path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, path)


BAD_FILES = {
    "truncated": (truncate, errors.CorruptCheckpointError, r"expected \d+ bytes, found \d+"),
    "cut in the header": (cut_header, errors.CorruptCheckpointError, r"expected a header of \d+"),
    "trailing bytes": (longer, errors.CorruptCheckpointError, r"expected \d+ bytes, found \d+"),
    "garbled header": (garbled, errors.CorruptCheckpointError, "damaged"),
    "empty": (lambda p: p.write_bytes(b""), errors.ForeignCheckpointError, "0 bytes"),
    "text": (lambda p: p.write_text("x" * 50), errors.ForeignCheckpointError, "not a safetensors"),
    "pickle": (pickle_file, errors.ForeignCheckpointError, r"kanmeta\.save"),
    "plain safetensors": (plain_safetensors, errors.ForeignCheckpointError, "did not write it"),
    "newer version": (
        lambda p: rewrite(p, lambda h: h.update(format=99, kanmeta="9.9")),
        errors.VersionError,
        r"format 99.*9\.9.*up to 1",
    ),
    "bad format": (
        lambda p: rewrite(p, lambda h: h.update(format="x")),
        errors.CorruptCheckpointError,
        "format 'x'",
    ),
    "no layers": (
        lambda p: rewrite(p, lambda h: h.pop("layers")),
        errors.CorruptCheckpointError,
        "layers",
    ),
    "bad cluster": (
        lambda p: rewrite(p, lambda h: h["layers"][0].update(meta_learner=7)),
        errors.CorruptCheckpointError,
        "damaged header",
    ),
    "bad activation": (
        lambda p: rewrite(p, lambda h: h["meta_learners"][0].update(activation="eval")),
        errors.CorruptCheckpointError,
        "damaged header",
    ),
    "unknown adapter": (
        lambda p: rewrite(p, lambda h: h["layers"][0].update(adapter="mine")),
        errors.ModelMismatchError,
        r"adapter 'mine'.*adapters=",
    ),
    "no such layer": (
        lambda p: rewrite(p, lambda h: h["layers"][0].update(name="layers.9")),
        errors.ModelMismatchError,
        "layers.9: expected a KAN layer, found no such module",
    ),
}


def untouched(model: nn.Module, state: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(state) and all(torch.equal(now[k], v) for k, v in state.items())


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_their_own_error_and_touch_nothing(name: str, tmp_path: Path) -> None:
    damage, error, text = BAD_FILES[name]
    _, path = saved(tmp_path)
    damage(path)  # type: ignore[operator]
    fresh = case(EXAMPLE).model(torch.float32)
    state = copy.deepcopy(fresh.state_dict())
    with pytest.raises(error, match=text) as raised:
        kanmeta.load(fresh, path)
    assert str(path) in str(raised.value)
    assert type(raised.value) is error
    assert untouched(fresh, state)
    assert not any("_kanmeta" in m.__dict__ for m in fresh.modules())


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    fresh = case(EXAMPLE).model(torch.float32)
    state = copy.deepcopy(fresh.state_dict())
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(errors.CheckpointError):
            kanmeta.load(fresh, path)
    assert untouched(fresh, state)


def test_missing_file_and_converted_model(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        kanmeta.load(case(EXAMPLE).model(), tmp_path / "nowhere.safetensors")
    with pytest.raises(errors.AlreadyConvertedError, match="freshly built"):
        kanmeta.load(model, path)
    kanmeta.load(kanmeta.materialize(model), path)  # the advice helps


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: KAN([4, 5, 3]), "expected a layer of fast-kan"),
        (lambda: case("fast-kan-no-norm").model(torch.float32), "found"),
        (lambda: case("fast-kan-no-base").model(torch.float32), "base_linear.weight"),
        (lambda: nn.Sequential(nn.Linear(4, 3)), "layers.0: expected a KAN layer"),
    ],
)
def test_wrong_model(other: object, text: str, tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    model = other()  # type: ignore[operator]
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(errors.ModelMismatchError, match=text) as raised:
        kanmeta.load(model, path)
    assert str(path) in str(raised.value)
    assert untouched(model, state)


def test_all_differences_at_once_and_strict_false(tmp_path: Path, caplog) -> None:
    def build(head: int) -> nn.Module:
        return nn.ModuleDict({"kan": KAN([20, 30]), "head": nn.Linear(30, head)})

    model = build(10)
    kanmeta.convert(model)
    path = tmp_path / "m.safetensors"
    kanmeta.save(model, path)
    other = build(7)
    other["extra"] = nn.Linear(2, 2)
    state = copy.deepcopy(other.state_dict())
    with pytest.raises(errors.ModelMismatchError) as raised:
        kanmeta.load(other, path)
    for text in ("head.weight: expected (7, 30), found (10, 30)", "head.bias", "extra.weight"):
        assert text in str(raised.value)
    assert untouched(other, state)
    kanmeta.load(other, path, strict=False)
    assert torch.equal(other["head"].weight, state["head.weight"])
    assert "head.weight" in caplog.text
    assert torch.equal(other["kan"].layers[0].prompts, model["kan"].layers[0].prompts)


# --- writing --------------------------------------------------------------------------------


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
    assert untouched(model, state)
