"""load: every kind of bad file gives its own error and leaves the model alone."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import kanmeta
from kanmeta import errors
from recipes.reference.efficient_kan import KAN
from tests.cases import EXAMPLE, case, same_state, saved

ROOT = Path(__file__).parents[1]


def rewrite(path: Path, change: object) -> None:
    """Write the file again with another kanmeta header."""
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


def in_utf_16(path: Path) -> None:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end].decode().encode("utf-16-le")
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def plain_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(3)}, path)


def pickle_file(path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, path)


BAD_FILES = {
    "truncated": (truncate, errors.CorruptCheckpointError, r"expected \d+ bytes, found \d+"),
    "cut in the header": (cut_header, errors.CorruptCheckpointError, r"expected a header of \d+"),
    "trailing bytes": (longer, errors.CorruptCheckpointError, r"expected \d+ bytes, found \d+"),
    "garbled header": (garbled, errors.CorruptCheckpointError, "damaged"),
    "header in UTF-16": (in_utf_16, errors.CorruptCheckpointError, "damaged header.*JSONDecode"),
    "empty": (lambda p: p.write_bytes(b""), errors.ForeignCheckpointError, "0 bytes"),
    "text": (lambda p: p.write_text("x" * 50), errors.ForeignCheckpointError, "not a safetensors"),
    "pickle": (pickle_file, errors.ForeignCheckpointError, r"kanmeta\.save"),
    "plain safetensors": (plain_safetensors, errors.ForeignCheckpointError, "did not write it"),
    "newer version": (
        lambda p: rewrite(p, lambda h: h.update(format=99, kanmeta="9.9")),
        errors.VersionError,
        r"format 99.*9\.9.*up to 3",
    ),
    "bad format": (
        lambda p: rewrite(p, lambda h: h.update(format="x")),
        errors.CorruptCheckpointError,
        "damaged header.*x",
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
    "layer twice": (
        lambda p: rewrite(p, lambda h: h["layers"].append(h["layers"][0])),
        errors.CorruptCheckpointError,
        "a layer twice",
    ),
    "owner elsewhere": (
        lambda p: rewrite(p, lambda h: h["meta_learners"][0].update(layer="nowhere")),
        errors.CorruptCheckpointError,
        "nowhere",
    ),
    "unused meta-learner": (
        lambda p: rewrite(p, lambda h: h["meta_learners"].append(h["meta_learners"][0])),
        errors.CorruptCheckpointError,
        "damaged header",
    ),
    "unknown adapter": (
        lambda p: rewrite(p, lambda h: h["layers"][0].update(adapter="mine")),
        errors.ModelMismatchError,
        r"adapter 'mine'.*adapters=",
    ),
    "no such layer": (
        lambda p: rewrite(
            p,
            lambda h: (
                h["layers"][0].update(name="layers.9"),
                h["meta_learners"][0].update(layer="layers.9"),
            ),
        ),
        errors.ModelMismatchError,
        "layers.9: expected a KAN layer, found no such module",
    ),
}


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
    assert same_state(fresh, state)
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
    assert same_state(fresh, state)


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
    assert same_state(model, state)


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
    assert same_state(other, state)
    kanmeta.load(other, path, strict=False)
    assert torch.equal(other["head"].weight, state["head.weight"])
    assert "head.weight" in caplog.text
    assert torch.equal(other["kan"].layers[0].prompts, model["kan"].layers[0].prompts)


WRONG_VALUES = [
    ("layers", "name", ["x"]),
    ("layers", "adapter", 3),
    ("layers", "edge", "zzz"),
    ("layers", "execution", "magic"),
    ("layers", "shape", []),
    ("layers", "shape", [5, 4, -9]),
    ("layers", "slots", []),
    ("layers", "meta_learner", True),
    ("meta_learners", "hidden", 32.0),
    ("meta_learners", "dim_z", 10**12),
    ("meta_learners", "bias", 1),
    ("meta_learners", "activation", None),
]


@pytest.mark.parametrize(("table", "key", "value"), WRONG_VALUES)
def test_wrong_values_in_the_header(table: str, key: str, value: object, tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    rewrite(path, lambda h: h[table][0].update({key: value}))
    fresh = case(EXAMPLE).model(torch.float32)
    state = copy.deepcopy(fresh.state_dict())
    with pytest.raises(errors.CheckpointError, match=r"model\.safetensors"):
        kanmeta.load(fresh, path)
    assert same_state(fresh, state)


class Refusing(nn.Module):
    """A module of the user's that does not take what was stored."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.refuses = False

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)  # type: ignore[arg-type]
        if self.refuses:
            raise RuntimeError("not today")


def test_a_failure_after_installation_is_undone(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.ModuleDict({"head": nn.Linear(3, 3), "kan": KAN([20, 30]), "odd": Refusing()})

    model = kanmeta.convert(build())
    kanmeta.save(model, tmp_path / "m.safetensors")
    fresh = build()
    state = copy.deepcopy(fresh.state_dict())
    fresh["odd"].refuses = True
    with pytest.raises(RuntimeError, match="not today"):
        kanmeta.load(fresh, tmp_path / "m.safetensors")
    assert same_state(fresh, state)
    assert not any("_kanmeta" in m.__dict__ for m in fresh.modules())
    fresh["odd"].refuses = False
    kanmeta.load(fresh, tmp_path / "m.safetensors")


def test_integers_in_place_of_prompts_and_the_meta_device(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    broken = dict(tensors)
    broken["layers.0.prompts"] = tensors["layers.0.prompts"].int()
    save_file(broken, tmp_path / "ints.safetensors", metadata)
    with pytest.raises(errors.CorruptCheckpointError, match="floating-point"):
        kanmeta.load(case(EXAMPLE).model(), tmp_path / "ints.safetensors")
    with pytest.raises(errors.PlanError, match="meta device"):
        kanmeta.load(case(EXAMPLE).model().to("meta"), path)


def test_a_model_that_cannot_be_written_to_stays_as_it_was(tmp_path):
    def build():
        return nn.Sequential(KAN([3, 4]), nn.Linear(4, 4))

    path = tmp_path / "model.safetensors"
    kanmeta.save(kanmeta.convert(build(), hidden=2), path)
    model = build()
    with torch.inference_mode():
        model[1] = nn.Linear(4, 4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(errors.ModelMismatchError, match=r"1\.weight of the model"):
        kanmeta.load(model, path)
    assert same_state(model, before)


def test_an_expanded_tensor_of_the_model_leaves_it_as_it_was(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 20)
            self.kan = KAN([20, 30])
            self.phase = nn.Parameter(torch.ones(3, 1).expand(3, 5))

    kanmeta.save(kanmeta.convert(Net()), tmp_path / "net")
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        errors.ModelMismatchError, match=r"phase .* give it memory of its own first"
    ):
        kanmeta.load(model, tmp_path / "net")
    assert same_state(model, before)
    assert type(model.kan.layers[0]) is type(KAN([20, 30]).layers[0])
    model.phase.data = model.phase.data.contiguous()  # the advice helps
    kanmeta.load(model, tmp_path / "net")
    assert model.kan.layers[0].prompts.shape == (30, 20, 1)
