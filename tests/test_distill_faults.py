"""An error or Ctrl-C while distilling: what the models are like afterwards."""

import copy
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import layer_matching, surgery, transfer
from tests.cases import kan, same_state
from tests.test_code_fit import ctrl_c
from tests.test_distill import FAST, coefficients, generated, trained

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")  # tiny models


class Stop:
    """A loss that goes wrong after some calls."""

    def __init__(self, calls: int, error: BaseException) -> None:
        self.left, self.error = calls, error

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return nn.functional.mse_loss(student, teacher)


@pytest.mark.parametrize("calls", [0, 5, 200])
def test_an_error_of_the_loss_leaves_the_student_alone(calls: int) -> None:
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), hidden=8)
    before = {name: t.clone() for name, t in student.state_dict().items()}
    with pytest.raises(ValueError, match="mine"):
        kanmeta.distill(
            student, teacher, data=x, loss=Stop(calls, ValueError("mine")), fit_steps=5,
            layer_steps=5, steps=300, progress=False,
        )  # fmt: skip
    assert same_state(student, before)
    assert all(p.requires_grad for p in student.parameters())


def test_an_interruption_leaves_the_best_state() -> None:
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=2, hidden=8)
    with torch.no_grad():
        start = float((student(x) - teacher(x)).norm())
    with pytest.raises(KeyboardInterrupt):
        kanmeta.distill(
            student, teacher, data=x, loss=Stop(150, KeyboardInterrupt()), fit_steps=50,
            layer_steps=50, steps=500, progress=False,
        )  # fmt: skip
    with torch.no_grad():
        assert float((student(x) - teacher(x)).norm()) < 0.3 * start
    nn.functional.mse_loss(student(x), teacher(x)).backward()
    assert all(z.grad is not None for z in kanmeta.prompts(student).values())


def test_an_interruption_leaves_the_fit_of_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every cluster: done, in the middle, and not begun."""
    teacher = trained()[0]

    def error(stop: int | None) -> dict[str, float]:
        bar = nullcontext(ctrl_c(stop))
        monkeypatch.setattr(sys.modules["kanmeta.distill"], "_bar", lambda *arguments: bar)
        student = kanmeta.convert(
            kan(8, 12, 3), dim_z=2, hidden=16, clusters="layer",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            options: Any = {"fit_steps": 400, "generator": torch.Generator().manual_seed(0)}
            kanmeta.distill(student, teacher, **options)
        theirs, ours = coefficients(teacher, student), generated(student)
        return {name: float((ours[name] - w).norm()) for name, w in theirs.items()}

    linear, done, stopped = error(1), error(None), error(600)
    assert stopped["layers.0"] == done["layers.0"]
    assert done["layers.1"] < stopped["layers.1"] < linear["layers.1"]


class Interrupting:
    """Batches, until Ctrl-C at the one of this number, counted over all passes."""

    def __init__(self, x: Tensor, at: int) -> None:
        self.batches, self.left = x.split(64), at

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize(("at", "converted"), [(3, False), (14, True)])
def test_an_interruption_of_convert_leaves_a_trained_model(at: int, converted: bool) -> None:
    """As it was while nothing is learnt yet, and converted afterwards."""
    teacher, x = trained()
    model = copy.deepcopy(teacher)
    with pytest.raises(KeyboardInterrupt):
        kanmeta.convert(model, dim_z=4, hidden=16, distill=Interrupting(x, at))
    assert surgery.is_converted(model) == converted
    with torch.no_grad():
        error = float((model(x) - teacher(x)).norm() / teacher(x).norm())
    assert error < 0.5 if converted else error == 0
    assert converted or same_state(model, teacher.state_dict())


@pytest.mark.parametrize("nth", [0, 1])
def test_values_are_put_in_all_or_none(nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the linear code goes in: convert puts back the model; in the next: it stays."""
    teacher, x = trained()
    model, put, calls = copy.deepcopy(teacher), transfer.put_back, []

    def interrupted(values: Any) -> None:
        calls.append(len(values))
        put(values[:2] if len(calls) == nth + 1 else values)
        if len(calls) == nth + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "put_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kanmeta.convert(model, dim_z=4, hidden=16, distill=True)
    assert len(calls) == nth + 2  # the last one undoes it
    assert surgery.is_converted(model) == (nth == 1)
    with torch.no_grad():
        error = float((model(x) - teacher(x)).norm() / teacher(x).norm())
    assert error < 0.5 if nth else error == 0


def test_an_interruption_of_layers_leaves_no_worse_model(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=4, hidden=16)

    def spoil(teacher: nn.Module, layers: Any, *rest: Any) -> str:
        for binding in layers.values():
            binding.prompts.data.add_(1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(layer_matching, "match_layers", spoil)
    with pytest.raises(KeyboardInterrupt):
        kanmeta.distill(student, teacher, data=x, **FAST)
    with torch.no_grad():
        assert float((student(x) - teacher(x)).norm() / teacher(x).norm()) < 0.5
