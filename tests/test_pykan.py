"""The real pykan, from the package index: training, reading, and the methods that write."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kanmeta
from kanmeta import errors

pytestmark = pytest.mark.filterwarnings("ignore")  # pykan's own


def build(tmp_path: Path, seed: int = 0) -> torch.nn.Module:
    from kan import KAN

    with torch.random.fork_rng(devices=[]):
        return KAN([2, 5, 1], grid=5, k=3, seed=seed, auto_save=False, ckpt_path=str(tmp_path))


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 2, generator=generator) * 2 - 1
    y = torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)
    return {
        "train_input": x[:200],
        "train_label": y[:200],
        "test_input": x[200:],
        "test_label": y[200:],
    }


def test_fit_trains_a_converted_model(tmp_path: Path) -> None:
    model, dataset = build(tmp_path), data()
    kanmeta.convert(model, hidden=4, generator=torch.Generator().manual_seed(0))
    before = {n: z.detach().clone() for n, z in kanmeta.prompts(model).items()}
    result = model.fit(dataset, opt="LBFGS", steps=6, update_grid=False, lamb=0.001)
    assert result["test_loss"][-1] < 0.7 * result["test_loss"][0]
    for name, z in kanmeta.prompts(model).items():
        assert not torch.equal(z, before[name])


def test_reading_methods_work(tmp_path: Path) -> None:
    model, dataset = build(tmp_path), data()
    kanmeta.convert(model, hidden=4)
    model(dataset["train_input"])
    model.attribute()
    assert model.edge_scores is not None
    assert model.get_reg("edge_forward_spline_n", 1.0, 2.0, 1.0, 1.0).requires_grad
    model.fix_symbolic(0, 0, 0, "sin", verbose=False)
    model(dataset["train_input"])
    refined = model.refine(10)
    assert not any(True for _ in kanmeta.surgery.bindings(refined))


WRITERS: dict[str, Callable[[torch.nn.Module, Tensor], object]] = {
    "update_grid": lambda m, x: m.update_grid(x),
    "fit with grid updates": lambda m, x: m.fit(data(), steps=2, grid_update_num=1),
    "layer update_grid": lambda m, x: m.act_fun[0].update_grid_from_samples(x),
    "swap": lambda m, x: m.act_fun[0].swap(0, 1, mode="in"),
    "parent": lambda m, x: m.act_fun[0].initialize_grid_from_parent(m.act_fun[0], x),
    "perturb": lambda m, x: m.act_fun[0].scale_base.data[0].__setitem__(0, torch.tensor(0.0)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_writing_methods_raise_and_change_nothing(name: str, tmp_path: Path) -> None:
    model, x = build(tmp_path), data()["train_input"]
    kanmeta.convert(model, hidden=4)
    with torch.no_grad():
        expected = model(x).clone()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(errors.CoefficientWriteError, match="materialize"):
        WRITERS[name](model, x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    kanmeta.materialize(model)  # the advice helps
    WRITERS[name](model, x)


def test_checkpoint_goes_into_a_fresh_pykan(tmp_path: Path) -> None:
    model, x = build(tmp_path), data()["train_input"]
    kanmeta.convert(model, hidden=4)
    kanmeta.save(model, tmp_path / "kan.safetensors")
    fresh = kanmeta.load(build(tmp_path, seed=3), tmp_path / "kan.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))
        kanmeta.materialize(fresh)
        assert torch.equal(fresh(x), model(x))
    build(tmp_path, seed=4).load_state_dict(fresh.state_dict())
