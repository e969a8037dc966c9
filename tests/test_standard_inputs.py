"""Distilling with made-up inputs: what they are, which models take them, what is gained."""

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import layer_matching, losses
from kanmeta.layer_metric import standard_call
from kanmeta.standard_inputs import StandardInputs, standard_inputs
from recipes.reference.conv_kan import KANConv2DLayer
from tests.cases import EXAMPLE, case, kan, linear
from tests.test_distill import FAST, ODD, UNJUDGED, Odd, trained

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")  # tiny models


@pytest.mark.parametrize("name", ["pykan", "private-conv-tap", "torch-conv-kan-spline"])
def test_standard_normal_inputs_stand_in_for_data(name: str) -> None:
    """Smaller function errors than coefficients alone give, where inputs are standard normal."""
    c = case(name)
    teacher = c.model(torch.float32)
    errors_at = {}
    for data in (None, "normal"):
        student = c.convert(c.model(torch.float32), dim_z=2, hidden=8)
        generator = torch.Generator().manual_seed(0)
        report = kanmeta.distill(
            student, teacher, data=data, fit_steps=0, layer_steps=0, steps=0,
            generator=generator, progress=False,
        )  # fmt: skip
        layers = kanmeta.access.complete_layers(student)
        total = 0.0
        for layer_name, binding in layers.items():
            layer = teacher.get_submodule(layer_name)
            call = standard_call(layer, binding.spec, torch.Generator().manual_seed(1))
            assert call is not None
            with torch.no_grad():
                total += float(layer_matching.relative_error(binding.layer, call))
        errors_at[data] = total
        note = report.stages[0].note
        assert note == ("of the coefficients" if data is None else note)
        assert report.loss is None
    assert f"{len(layers)} of {len(layers)} layers" in note
    assert errors_at["normal"] < 0.95 * errors_at[None]


@pytest.mark.parametrize("name", [EXAMPLE, "private-conv-tap"])
def test_made_up_inputs_are_standard_and_go_together_as_the_coefficients_do(name: str) -> None:
    c = case(name)
    layers = kanmeta.access.complete_layers(c.convert(c.model(torch.float32)))
    layer_name, binding = next(iter(layers.items()))
    layer = c.model(torch.float32).get_submodule(layer_name)
    spec = binding.spec
    w = spec.read(layer)
    axis = spec.edge_axes.index("i")
    w.movedim(axis, 0)[1] = w.movedim(axis, 0)[0]  # two inputs with the same coefficients
    batches = iter(StandardInputs(w, spec, torch.Generator().manual_seed(0)))
    x = torch.cat([next(batches).movedim(1, -1).reshape(-1, spec.sizes["i"]) for _ in range(40)])
    torch.testing.assert_close(x.std(0), torch.ones_like(x[0]), atol=0.15, rtol=0)
    together = torch.corrcoef(x.T)
    assert together[0, 1] > 0.999
    if x.shape[1] > 2:
        assert 0.2 < together[0, 2:].mean() < 0.8  # a common part, half of the variance


def test_layers_are_matched_at_made_up_inputs() -> None:
    """Better where inputs go together, for which the stage is made."""
    teacher, _ = trained()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 1, generator=generator) + 0.3 * torch.randn(500, 8, generator=generator)
    error = []
    for steps in (0, 200):
        student = kanmeta.convert(kan(8, 12, 3), dim_z=2, hidden=8, clusters="layer")
        generator = torch.Generator().manual_seed(0)
        report = kanmeta.distill(
            student, teacher, data="normal", fit_steps=50, layer_steps=steps, steps=0,
            generator=generator,
        )  # fmt: skip
        with torch.no_grad():
            error.append(float((student.layers[0](x) - teacher.layers[0](x)).norm()))
    assert report.stages[-1].name == "layer outputs, standard inputs"
    assert "held-out loss" in report.stages[-1].note
    assert error[1] < 0.9 * error[0]


@pytest.mark.parametrize("loss", ["kl", None])
def test_outputs_are_matched_at_made_up_inputs(loss: str | None) -> None:
    """At others of that kind the model is nearer to the teacher, by the loss that was asked for."""
    teacher, _ = trained()
    error = []
    for steps in (0, 100):
        student = kanmeta.convert(kan(8, 12, 3), dim_z=1, hidden=8, clusters="layer")
        generator = torch.Generator().manual_seed(0)
        report = kanmeta.distill(
            student, teacher, data="normal", loss=loss, fit_steps=50, layer_steps=20, steps=steps,
            generator=generator,
        )  # fmt: skip
        layer, binding = next(iter(kanmeta.access.complete_layers(student).items()))
        w = binding.spec.read(teacher.get_submodule(layer))
        x = next(iter(StandardInputs(w, binding.spec, torch.Generator().manual_seed(1))))
        with torch.no_grad():
            judge = losses.kl if loss == "kl" else nn.functional.mse_loss
            error.append(float(judge(student(x), teacher(x))))
    assert report.stages[-1].name == f"outputs ({loss or 'mse'}), standard inputs"
    assert error[1] < 0.8 * error[0]


@pytest.mark.parametrize("kind", ODD)
def test_made_up_inputs_do_for_models_of_any_output(kind: str) -> None:
    """Where there is nothing to match, coefficients are kept, and the report says why."""
    teacher = Odd(trained()[0], ODD[kind])
    student = kanmeta.convert(Odd(kan(8, 12, 3), ODD[kind]), dim_z=2, hidden=8)
    report = kanmeta.distill(student, teacher, data="normal", **FAST)
    *_, layers, outputs = report.stages
    assert layers.name == "layer outputs, standard inputs"
    if kind in UNJUDGED:
        assert outputs.note.startswith("left out: ")
    else:
        assert outputs.name == "outputs (mse), standard inputs"
    assert report.coefficient_error < 1


class Pictures(nn.Module):
    """Takes images of one size only, or flat ones that it brings into a shape of its own."""

    def __init__(self, side: int, flat: bool) -> None:
        super().__init__()
        self.layer, self.side, self.flat = KANConv2DLayer(2, 3, 3), side, flat

    def forward(self, x: Tensor) -> Tensor:
        if self.flat:
            x = x.reshape(-1, 2, self.side, self.side)
        assert x.shape[-1] == self.side
        y: Tensor = self.layer(x)
        return y.flatten(1)


@pytest.mark.parametrize(
    ("side", "flat", "found"),
    [(28, False, True), (32, True, True), (40, False, False), (40, True, False)],
)
def test_made_up_images_have_the_size_that_the_model_takes(
    side: int, flat: bool, found: bool
) -> None:
    student = kanmeta.convert(Pictures(side, flat))
    layers = kanmeta.access.complete_layers(student)
    made = standard_inputs(Pictures(side, flat), layers, None)
    if found:
        assert made is not None
        assert next(iter(made)).shape[2:] == (side, side)
    else:  # no such size; flat ones would be cut up and put together again
        assert made is None


def test_a_rotation_stands_for_many_directions() -> None:
    """Of a layer with more coefficients an input than inputs: the same correlations, less work."""
    spec = kanmeta.access.complete_layers(kanmeta.convert(kan(4, 30)))["layers.0"].spec
    w = torch.randn(*spec.edge_shape, spec.dim_w, generator=torch.Generator().manual_seed(0))
    made = StandardInputs(w, spec, torch.Generator().manual_seed(0))
    assert made._directions.shape == (4, 4)
    flat = (w - w.mean((0, 1))).movedim(spec.edge_axes.index("i"), -1).reshape(-1, 4)
    expected = torch.nn.functional.normalize(flat, dim=0)
    torch.testing.assert_close(
        made._directions.T @ made._directions, expected.T @ expected, atol=1e-5, rtol=0
    )


def test_layers_without_standard_inputs_fall_back_to_their_coefficients() -> None:
    """A layer that refuses a matrix, as one behind a wrapper of the user's may."""
    teacher, _ = trained()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=2, hidden=8, clusters="layer")
    teacher.layers[1].register_forward_pre_hook(_refuse)
    report = kanmeta.distill(student, teacher, data="normal", **FAST)
    assert "1 of 2 layers" in report.stages[0].note
    assert "does not take" in report.stages[-1].note


class Named(nn.Module):
    """Calls its layer by the argument's name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x=x)
        return y


def test_a_layer_may_be_called_by_name() -> None:
    student = kanmeta.convert(Named(), dim_z=2, hidden=8)
    report = kanmeta.distill(student, Named(), data="normal", **FAST)
    assert report.stages[-1].name == "outputs (mse), standard inputs"


def _refuse(layer: nn.Module, args: object) -> None:
    raise RuntimeError("not these")
