"""A user's whole day with the real pykan, on a converted model: from data to a formula."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch

import kanmeta
from kanmeta.surgery import bindings
from tests.test_pykan import build, data, with_formulas

pytestmark = pytest.mark.filterwarnings("ignore")  # pykan's own
LIB = ["x", "x^2", "x^3", "exp", "sin", "abs"]
# LBFGS needs a smooth meta-learner: relu's kinks make its line search fail now and then.
SMOOTH: dict[str, Any] = {"hidden": 16, "dim_z": 4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: None)  # pykan's
    mpl.use("Agg")
    return tmp_path


@with_formulas
def test_a_formula_comes_out_of_a_converted_model(folder: Path) -> None:
    """f(x) = exp(sin(pi x1) + x2^2): build, convert, fit, prune, fit, plot, auto_symbolic, fit."""
    dataset = data()
    formulas = []
    for activation, lamb in (("silu", 0.01), ("tanh", 0.001)):
        model = build()
        generator = torch.Generator().manual_seed(0)
        kanmeta.convert(model, activation=activation, generator=generator, **SMOOTH)
        model.fit(dataset, opt="LBFGS", steps=20, lamb=lamb)
        model = model.prune()
        assert len(list(bindings(model))) == 2
        model.fit(dataset, opt="LBFGS", steps=20)
        model.plot(folder=str(folder / "figures"))
        assert list((folder / "figures").glob("*.png"))
        model.auto_symbolic(lib=LIB, verbose=0)
        model.fit(dataset, opt="LBFGS", steps=20, update_grid=False)
        formulas.append(str(model.symbolic_formula()[0][0]))
        loss = float(model.evaluate(dataset)["test_loss"])
        if loss < 0.05 and all(part in formulas[-1] for part in ("exp(", "sin(", "x_1", "x_2")):
            return
    pytest.fail(f"no sensible formula: {formulas}")


def test_fit_is_as_good_as_on_the_plain_model(folder: Path) -> None:
    dataset = data()
    losses = {}
    for converted in (False, True):
        model = build()
        if converted:
            generator = torch.Generator().manual_seed(0)
            kanmeta.convert(model, activation="silu", generator=generator, **SMOOTH)
        result = model.fit(dataset, opt="LBFGS", steps=20, lamb=0.001)
        losses[converted] = float(result["test_loss"][-1])
    assert losses[True] < 2 * losses[False], losses
