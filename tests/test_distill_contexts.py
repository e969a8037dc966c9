"""distill under the caller's contexts, and where numbers are very large, very small or zero."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors, layer_matching
from kanmeta.layer_metric import Call
from tests.cases import kan
from tests.test_distill import FAST, trained

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")  # tiny models

CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "another default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def distilled(data: Tensor | bool, context: Callable[[], AbstractContextManager[object]]) -> Tensor:
    """Outputs of a model that was converted within the context, with distilling."""
    model, x = trained()
    generator = torch.Generator().manual_seed(0)
    with context():
        kanmeta.convert(model, dim_z=2, hidden=16, distill=data, generator=generator)
    with torch.no_grad():
        y: Tensor = model(x)
    return y


@pytest.mark.parametrize("name", CONTEXTS)
def test_coefficients_are_fitted_as_everywhere(name: str) -> None:
    assert torch.equal(distilled(True, CONTEXTS[name]), distilled(True, torch.enable_grad))


@pytest.mark.parametrize("name", ["inference", "no gradients"])
def test_outputs_are_matched_as_everywhere(name: str) -> None:
    x = trained()[1][:128]
    expected = distilled(x, torch.enable_grad)
    with CONTEXTS[name]():
        made = x + 0  # a tensor that autograd may not be able to save
    assert torch.equal(distilled(made, CONTEXTS[name]), expected)


def test_autocast_is_of_the_model_not_of_coefficients() -> None:
    teacher, _ = trained()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=9, hidden=18)
    with torch.autocast("cpu", torch.bfloat16):
        report = kanmeta.distill(student, teacher, **FAST)
    assert report.coefficient_error < 1e-6


@pytest.mark.parametrize("scale", [1e-22, 1e-15, 1.0, 1e15, 1e30])
def test_errors_of_layers_do_not_depend_on_the_scale(scale: float) -> None:
    x = torch.rand(50, 4)
    layer, other = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        expected = float((layer(x) - other(x)).square().sum() / other(x).square().sum())
        layer.weight.mul_(scale)
        other.weight.mul_(scale)
    error = layer_matching.relative_error(layer, Call((x,), {}, other(x).detach()))
    assert error.item() == pytest.approx(expected, rel=1e-4)


def test_errors_of_layers_without_rows_and_in_half_precision() -> None:
    layer = nn.Linear(4, 3)
    nothing = layer_matching.relative_error(layer, Call((torch.rand(0, 4),), {}, torch.rand(0, 3)))
    nothing.backward()
    assert nothing.item() == 0
    halves = torch.full((400, 500), 0.9, dtype=torch.float16)
    call = Call((halves,), {}, torch.ones_like(halves))
    assert layer_matching.relative_error(nn.Identity(), call).item() == pytest.approx(
        0.01, rel=0.01
    )


def test_a_layer_that_gives_nothing_does_not_drown_the_others() -> None:
    teacher, x = trained()
    with torch.no_grad():
        for p in teacher.layers[1].parameters():  # type: ignore[union-attr]
            p.zero_()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=2, hidden=16, clusters=1)
    report = kanmeta.distill(student, teacher, data=x, **FAST)
    (note,) = [stage.note for stage in report.stages if stage.name == "layer outputs"]
    first, last = map(float, re.findall(r"[0-9.e+-]*[0-9]", note)[:2])
    assert last <= first < 1, note
    assert report.layers[1].function_error is None


@pytest.mark.parametrize(
    ("generator", "message"),
    [("seed", "generator='seed': expected a torch.Generator"), (3, "generator=3: expected")],
)
def test_other_generators_are_refused(generator: object, message: str) -> None:
    teacher, _ = trained()
    with pytest.raises(errors.PlanError, match=message):
        kanmeta.convert(kan(8, 12, 3), generator=generator)  # type: ignore[arg-type]
    student = kanmeta.convert(kan(8, 12, 3))
    with pytest.raises(errors.PlanError, match=message):
        kanmeta.distill(student, teacher, generator=generator)  # type: ignore[arg-type]


def test_a_batch_without_rows_is_refused() -> None:
    teacher, _ = trained()
    student = kanmeta.convert(kan(8, 12, 3))
    with pytest.raises(errors.PlanError, match=r"a batch of shape \(0, 8\): expected at least one"):
        kanmeta.distill(student, teacher, data=[torch.rand(0, 8)])
