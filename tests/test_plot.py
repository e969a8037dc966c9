"""Pictures: the curves are the layer's functions, nothing is shown, and errors say why."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import plot
from kanmeta.errors import NothingToConvertError, PlanError
from kanmeta.univariate import curves, layer_specs
from recipes.reference import conv_kan, efficient_kan, fast_kan, fc_poly, wav_kan


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def kan() -> nn.Module:
    return efficient_kan.KAN([4, 5, 3])


@pytest.fixture
def student(kan: nn.Module) -> nn.Module:
    return kanmeta.convert(efficient_kan.KAN([4, 5, 3]), dim_z=2, hidden=4, generator=seed())


def drawn(axis: Any) -> Tensor:
    return torch.tensor(axis.lines[-1].get_ydata())


def test_curves_are_those_of_the_formula(kan: nn.Module) -> None:
    """Other coefficients than the edge's zero: what is left is the function and no other."""
    layer, x = kan.layers[0], torch.linspace(-0.9, 0.9, 7)
    with torch.no_grad():
        layer.spline_weight.normal_(generator=seed())
    edges = [(0, 0), (4, 3), (2, 1)]
    found = curves(layer, layer_specs(kan)["layers.0"], edges, x)
    assert not found.without_norm
    for y, (o, i) in zip(found.y, edges, strict=True):
        alone = efficient_kan.KAN([4, 5]).layers[0]
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                mask = torch.zeros_like(parameter)
                mask[o, i] = 1
                parameter.copy_(mask * layer.get_parameter(name))
            inputs = torch.full((8, 4), 0.3)
            inputs[:, i] = torch.cat([x, torch.zeros(1)])
            expected = alone(inputs)[:, o]
        assert y.abs().max() > 0.01
        torch.testing.assert_close(y, expected[:-1] - expected[-1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: efficient_kan.KANLinear(3, 4),
        lambda: fast_kan.FastKANLayer(3, 4, use_layernorm=False),
        lambda: wav_kan.KANLinear(3, 4),
    ],
)
def test_a_converted_layer_and_its_materialized_one_have_the_same_curves(build: Any) -> None:
    model = kanmeta.convert(nn.Sequential(build()).eval(), hidden=4, generator=seed())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    figures = [plot.functions(model, edges=[(3, 2), (0, 1)], points=9)]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    figures.append(plot.functions(kanmeta.materialize(model), edges=[(3, 2), (0, 1)], points=9))
    for ours, theirs in zip(*(figure.axes for figure in figures), strict=True):
        assert drawn(ours).abs().max() > 1e-4
        torch.testing.assert_close(drawn(ours), drawn(theirs), rtol=1e-4, atol=1e-6)


def test_a_norm_that_mixes_inputs_is_left_out_and_the_axis_says_so() -> None:
    layer = fast_kan.FastKANLayer(3, 4)
    figure = plot.functions(nn.Sequential(layer), points=9)
    assert figure.get_supxlabel() == "input x, norm left out"
    free = fast_kan.FastKANLayer(3, 4, use_layernorm=False)
    free.load_state_dict({k: v for k, v in layer.state_dict().items() if "layernorm" not in k})
    expected = plot.functions(nn.Sequential(free), points=9)
    assert expected.get_supxlabel() == "input x"
    for ours, theirs in zip(figure.axes, expected.axes, strict=True):
        torch.testing.assert_close(drawn(ours), drawn(theirs))
    assert isinstance(layer.layernorm, nn.LayerNorm)


def test_before_is_drawn_behind(kan: nn.Module, student: nn.Module) -> None:
    figure = plot.functions(student, "layers.1", before=kan, edges=[(2, 4)], points=5)
    behind, front = figure.axes[0].lines
    assert (behind.get_label(), front.get_label()) == ("before", "after")
    spec = layer_specs(kan)["layers.1"]
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    expected = curves(kan.layers[1], spec, [(2, 4)], x).y[0]
    torch.testing.assert_close(torch.tensor(behind.get_ydata()), expected)
    with pytest.raises(PlanError, match="has edges"):
        plot.functions(student, before=efficient_kan.KAN([4, 6, 3]))


def test_a_panel_for_each_edge_and_twelve_at_most(kan: nn.Module) -> None:
    titles = [axis.get_title() for axis in plot.functions(kan, points=5).axes if axis.lines]
    assert len(titles) == len({*titles}) == 12
    assert titles[0] == "in 0 → out 0"
    assert titles[-1] == "in 3 → out 4"
    few = plot.functions(efficient_kan.KAN([5, 1]), points=5).axes
    assert sum(axis.get_visible() for axis in few) == 5


def test_layers_without_curves_say_why() -> None:
    class Mixing(efficient_kan.KANLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * x.sum(1, keepdim=True))

    with pytest.raises(PlanError, match="not a sum of functions of one input each"):
        plot.functions(nn.Sequential(Mixing(3, 4)))
    with pytest.raises(PlanError, match="with or without its norms"):
        plot.functions(fc_poly.JacobiKANLayer(3, 4, 3))  # an activation after the norm
    with pytest.raises(PlanError, match="is a convolution"):
        plot.functions(conv_kan.KANConv2DLayer(2, 3, 3))
    with pytest.raises(PlanError, match="no KAN layer in this Linear"):
        plot.functions(nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_drawn_without_the_rounding_of_sums(
    dtype: torch.dtype, student: nn.Module
) -> None:
    student.to(dtype)
    expected = plot.functions(copy.deepcopy(student).float(), points=9)
    found = plot.functions(student, points=9)
    assert student.layers[0].prompts.dtype == dtype
    for ours, theirs in zip(found.axes, expected.axes, strict=True):
        torch.testing.assert_close(drawn(ours), drawn(theirs), rtol=0.05, atol=0.05)
    plot.functions(efficient_kan.KAN([4, 5, 3]).to(dtype), before=student, points=9)


def test_models_that_have_diverged_are_not_drawn(kan: nn.Module, student: nn.Module) -> None:
    with torch.no_grad():
        kan.layers[0].spline_weight[0, 0] = torch.nan
        student.layers[0].prompts[0, 0] = torch.inf
    for model in (kan, student):
        for draw in (plot.functions, plot.similarity):
            with pytest.raises(PlanError, match=r"has diverged\. Draw a model saved before"):
                draw(model)
    with pytest.raises(PlanError, match="or the other layers with layers="):
        plot.prompts(student)
    plot.prompts(student, layers=["layers.1"])  # the advice
    plot.similarity(kan, layers=["layers.1"])
    plot.functions(kan, "layers.1")


def test_unknown_layers_and_edges(kan: nn.Module, student: nn.Module) -> None:
    for draw in (
        lambda: plot.functions(kan, "layer.0"),
        lambda: plot.similarity(kan, layers=["layer.0"]),
        lambda: plot.prompts(student, layers=["layer.0"]),
    ):
        with pytest.raises(PlanError, match=r"no KAN layer is called 'layer\.0'; there are 'layer"):
            draw()
    for edges in ([(5, 0)], [(0, 4)], [(0, -1)], [(0, 1, 2)], []):
        with pytest.raises(PlanError, match=r"expected \(output, input\)"):
            plot.functions(kan, edges=edges)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="there are"):
        plot.similarity(kan, layers=[])


def test_similarity_is_the_cosine_of_coefficients(kan: nn.Module, student: nn.Module) -> None:
    figure = plot.similarity(student, before=kan, layers=["layers.1"])
    left, right = (torch.from_numpy(axis.images[0].get_array().data) for axis in figure.axes[:2])
    w = kanmeta.coefficients(student)["layers.1"].detach().reshape(15, -1).double()
    expected = torch.cosine_similarity(w[:, None], w[None], dim=-1)
    torch.testing.assert_close(right, expected)
    plain = torch.cat([kan.layers[1].base_weight[..., None], kan.layers[1].scaled_spline_weight], 2)
    plain = plain.detach().reshape(15, -1).double()
    expected = torch.cosine_similarity(plain[:, None], plain[None], dim=-1)
    torch.testing.assert_close(left, expected, rtol=1e-4, atol=1e-5)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names[0] == "layers.1 0,0"
    assert names[-1] == "layers.1 2,4"


def test_heat_maps_have_all_layers_alike_and_150_edges_at_most(student: nn.Module) -> None:
    (image,) = plot.similarity(student).axes[0].images
    assert image.get_array().shape == (4 * 5 + 5 * 3,) * 2
    large = kanmeta.convert(efficient_kan.KAN([20, 15, 3]), generator=seed())
    figure = plot.prompts(large)
    assert figure.axes[0].images[0].get_array().shape == (150, 150)
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert labels == ["layers.0", "layers.1"]
    mixed = nn.Sequential(efficient_kan.KANLinear(4, 5), efficient_kan.KANLinear(5, 3, grid_size=9))
    with pytest.raises(PlanError, match=r"layers have \[9, 13\] coefficients"):
        plot.similarity(mixed, layers=["0", "1"])


def test_prompts_are_compared_within_a_meta_learner(kan: nn.Module, student: nn.Module) -> None:
    figure = plot.prompts(student)
    z = torch.cat([p.detach().reshape(-1, 2) for p in kanmeta.prompts(student).values()]).double()
    shown = torch.from_numpy(figure.axes[0].images[0].get_array().data)
    assert shown.max() > 0.1
    torch.testing.assert_close(shown, torch.cdist(z, z))
    apart = kanmeta.convert(kan, clusters="layer", hidden=4, generator=seed())
    assert plot.prompts(apart).axes[0].images[0].get_array().shape == (20, 20)
    with pytest.raises(PlanError, match="different meta-learners"):
        plot.prompts(apart, layers=["layers.0", "layers.1"])
    with pytest.raises(NothingToConvertError):
        plot.prompts(efficient_kan.KAN([2, 2]))


def test_compression_joins_series_and_labels_points() -> None:
    records = [
        {"bytes": 900, "accuracy": 80.0, "series": "small", "label": "3 bits"},
        {"bytes": 500, "accuracy": 70.0, "series": "small", "label": "2 bits"},
        {"bytes": 501, "accuracy": 70.1, "series": "small", "label": "hidden behind 2 bits"},
        {"bytes": 9000, "accuracy": 88.0, "series": "teacher"},
    ]
    axis = plot.compression(records).axes[0]
    small, teacher = axis.lines
    assert [*small.get_xdata()] == [500, 501, 900]
    assert [*teacher.get_ydata()] == [88]
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.texts] == ["2 bits", "3 bits"]
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["small", "teacher"]
    assert plot.compression([{"bytes": 1, "accuracy": 2}]).axes[0].get_legend() is None
    with pytest.raises(PlanError, match="expected a record with accuracy"):
        plot.compression([{"bytes": 1}])
    with pytest.raises(PlanError, match="no records"):
        plot.compression([])


def test_figures_can_be_written_without_a_display(student: nn.Module, tmp_path: Path) -> None:
    known = "matplotlib.pyplot" in sys.modules
    plot.functions(student, before=student).savefig(tmp_path / "f.png")
    plot.prompts(student).savefig(tmp_path / "p.svg")
    assert (tmp_path / "f.png").stat().st_size > 5000
    assert ("matplotlib.pyplot" in sys.modules) is known


def test_without_matplotlib_the_import_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "kanmeta.plot")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        __import__("kanmeta.plot")
