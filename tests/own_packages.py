"""What is odd in each package, and its own networks; run by test_packages.py, one at a time."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from tests import packages
from tests.case import Case
from tests.cases import CASES
from tests.test_contract import as_identity

load = packages.load
only = {name: pytest.mark.skipif(name != packages.CHOSEN, reason="") for name in packages.NAMES}


def _conv(groups: int, stride: int = 1) -> nn.Module:
    conv = load("convkan").ConvKAN
    first = conv(2, 4, kernel_size=3, padding=1, groups=groups, stride=stride)
    last = conv(4, 4, kernel_size=(1, 3), padding_mode="reflect", padding=(0, 1), groups=groups)
    return nn.Sequential(first, last)


def _gpt(implementation: str) -> nn.Module:
    gpt = load("kan_gpt.model").GPT
    config = gpt.get_default_config()
    config.model_type, config.kan_implementation = None, implementation
    config.n_layer, config.n_head, config.n_embd = 1, 2, 4
    config.vocab_size, config.block_size = 11, 6
    return gpt(config)


def _flat(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(8, *shape) * 1.8 - 0.9


# package: {name: (build, input, number of layers that are converted)}
Model = tuple[Callable[[], nn.Module], Callable[[], Tensor], int]
MODELS: dict[str, dict[str, Model]] = {
    "convkan": {
        "dense": (lambda: _conv(1), _flat(2, 5, 5), 2),
        "grouped": (lambda: _conv(2, stride=2), _flat(2, 5, 5), 2),
    },
    "deep_kan": {
        "DeepKAN": (lambda: load("deepkan").DeepKAN(4, [5, 3]), _flat(4), 2),
        "RBFKAN": (lambda: load("deepkan").RBFKAN([4, 5, 3]), _flat(4), 2),
    },
    "flashkan": {"KANNetwork": (lambda: load("flashkan").KANNetwork([4, 5, 3]), _flat(4), 2)},
    "ikan": {
        name: (lambda n=name: getattr(load("ikan"), n)([4, 5, 3]), _flat(4), 2)
        for name in ("KAN", "ChebyKAN", "FourierKAN", "JacobiKAN", "TaylorKAN", "WaveletKAN")
    },
    "inkan": {
        "KANNetwork": (
            lambda: load("inkan").KANNetwork([4, 5, 3], compile_basis=False),
            _flat(4),
            2,
        ),
        "surface": (
            lambda: load("inkan").KANNetwork([2, 5, 3], dim=2, compile_basis=False),
            _flat(2),
            1,
        ),
    },
    "kan_gpt": {
        name: (lambda n=name: _gpt(n), lambda: torch.randint(11, (8, 6)), 5)
        for name in ("ORIGINAL_KAN", "EFFICIENT_KAN")
    },
    "kanx": {
        name: (lambda n=name: getattr(load("kanx.torch"), n)([4, 5, 3]), _flat(4), 2)
        for name in ("KAN", "MatrixKAN")
    },
    "kolmarn": {
        "KANSequential": (lambda: load("kan.models").KANSequential(4, [5, 3]), _flat(4), 2)
    },
}
CHOSEN = [
    pytest.param(model, id=f"{packages.CHOSEN}-{name}")
    for name, model in MODELS.get(packages.CHOSEN, {}).items()
]


def _output(y: Any) -> Tensor:
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize("model", CHOSEN)
@pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")
@pytest.mark.filterwarnings("ignore::kanmeta.errors.SkippedLayerWarning")
def test_network_converts_trains_materializes_and_is_saved(model: Model, tmp_path: Path) -> None:
    build, make, number = model
    torch.manual_seed(0)
    network, x = build(), make()
    with torch.no_grad():
        expected = _output(network(x)).shape
    kanmeta.convert(network, hidden=4)
    assert len(kanmeta.prompts(network)) == number
    optimiser = torch.optim.AdamW(kanmeta.param_groups(network, lr=1e-3, prompt_lr=1e-3))
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = (_output(network(x)) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    kanmeta.save(network, tmp_path / "model.safetensors")
    loaded = kanmeta.load(build(), tmp_path / "model.safetensors")
    network.eval(), loaded.eval()
    with torch.no_grad():
        y = _output(network(x))
        assert y.shape == expected
        assert torch.equal(_output(loaded(x)), y)
        kanmeta.materialize(network)
        torch.testing.assert_close(_output(network(x)), y)


def _pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The first layer of a row, as it is and converted to the same function."""
    case: Case = next(c for c in CASES if c.name == name)
    model = case.model()
    plain = copy.deepcopy(model)[0]
    return plain, as_identity(case, model)[0]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param("convkan-groups", "update_grid", marks=only["convkan"]),
        pytest.param("convkan-no-scaler", "update_grid", marks=only["convkan"]),
        pytest.param("deep_kan-spline", "_update_knots", marks=only["deep_kan"]),
        pytest.param("deep_kan-spline-no-scales", "_update_knots", marks=only["deep_kan"]),
    ],
)
def test_a_grid_update_is_the_librarys_own(name: str, method: str) -> None:
    plain, layer = _pair(name)
    groups = getattr(plain, "groups", 1)
    for scaler in ("spline_scaler", "spline_scales"):
        if hasattr(plain, scaler):  # upstream fits the scaled curve and scales it once more
            weight = plain.spline_weight if scaler == "spline_scaler" else plain.spline_weights
            weight.data *= getattr(plain, scaler).data.unsqueeze(-1)
            getattr(plain, scaler).data.fill_(1)
    samples = torch.rand(60, 4, dtype=torch.float64) ** 2
    given = samples if method == "_update_knots" else samples.view(60, groups, -1).transpose(0, 1)
    x = torch.rand(9, 4, dtype=torch.float64)
    before = layer(x).detach()
    torch.testing.assert_close(before, plain(x))
    getattr(plain, method)(given)
    getattr(layer, method)(given)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-6, atol=1e-6)
    assert not torch.equal(layer(x), before)  # the grid has moved


@only["deep_kan"]
def test_deep_kan_a_failed_grid_update_leaves_the_knots_alone() -> None:
    _, layer = _pair("deep_kan-spline")
    knots, x = layer.knots.clone(), torch.rand(9, 4, dtype=torch.float64)
    before = layer(x)
    with pytest.raises((errors.CoefficientWriteError, RuntimeError)):
        layer._update_knots(torch.full((60, 4), torch.nan, dtype=torch.float64))
    assert torch.equal(layer.knots, knots)
    assert torch.equal(layer(x), before)


@only["deep_kan"]
def test_deep_kan_moved_knots_are_in_the_file(tmp_path: Path) -> None:
    """They are a plain attribute, which no state_dict holds."""
    make = load("deepkan").SplineLinearLayer
    layer, x = make(4, 5), torch.rand(60, 4)
    kanmeta.convert(layer, hidden=2)
    layer._update_knots(x)
    kanmeta.save(layer, tmp_path / "layer.safetensors")
    fresh = make(4, 5)
    knots = fresh.knots
    kanmeta.load(fresh, tmp_path / "layer.safetensors")
    assert torch.equal(fresh(x), layer(x))
    assert not torch.equal(fresh.knots, knots)


@only["deep_kan"]
def test_deep_kan_knots_follow_the_layer() -> None:
    """The library keeps them in a plain attribute, which ``to`` leaves behind."""
    plain, layer = _pair("deep_kan-spline")
    assert plain.to("meta").knots.device.type == "cpu"
    assert layer.to("meta").knots.device.type == "meta"


@only["inkan"]
def test_inkan_a_surface_over_two_inputs_is_refused() -> None:
    layer = load("inkan").KANLayer(2, 3, dim=2, compile_basis=False)
    with pytest.raises(errors.NothingToConvertError, match="surface over two inputs"):
        kanmeta.convert(nn.Sequential(layer))


@only["inkan"]
def test_inkan_views_of_the_packed_weight_are_generated() -> None:
    plain, layer = _pair("inkan-dense")
    torch.testing.assert_close(layer.spline_weight, plain.spline_weight)
    torch.testing.assert_close(layer.base_weight, plain.base_weight)
    with pytest.raises(errors.CoefficientWriteError):
        layer.reset_parameters()


@only["kanx"]
def test_kanx_prune_is_refused_and_its_advice_works() -> None:
    _, layer = _pair("kanx")
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(errors.CoefficientWriteError, match=r"kanmeta\.materialize\(model\) first"):
        layer.prune(relative=0.5)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    model = load("kanx.torch").KAN([8, 8, 8])
    kanmeta.convert(model, hidden=2)
    assert kanmeta.materialize(model).prune(relative=0.5)["pruned"] > 0


@only["kanx"]
@pytest.mark.parametrize("name", ["kanx", "kanx-square", "kanx-matrix"])
def test_kanx_a_grid_update_leaves_coefficients_as_upstream_does(name: str) -> None:
    plain, layer = _pair(name)
    samples, x = torch.rand(60, 4, dtype=torch.float64), torch.rand(9, 4, dtype=torch.float64)
    before = layer(x).detach()
    plain.update_grid_from_samples(samples)
    layer.update_grid_from_samples(samples)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-12)
    assert not torch.equal(layer(x), before)


@only["mlp_kan"]
@pytest.mark.parametrize("name", ["mlp_kan", "mlp_kan-interpolation"])
def test_mlp_kan_functions_of_single_edges(name: str) -> None:
    plain, layer = _pair(name)
    x = torch.rand(7, 1, dtype=torch.float64)
    theirs, ours = (each.take_function(2, 1)(x) for each in (plain, layer))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert theirs.std() > 0


@only["single_kan"]
def test_single_kan_is_refused_because_there_is_nothing_to_compress() -> None:
    model = load("skan.skans").SKANNetwork([4, 5, 3])
    with pytest.raises(errors.NothingToConvertError, match="one number an edge"):
        kanmeta.plan(model)


@only["single_kan"]
def test_single_kan_beside_other_layers_is_left_alone() -> None:
    from recipes.reference.efficient_kan import KANLinear

    single = load("skan.skans").SKANLinear(30, 30)
    model = nn.Sequential(KANLinear(30, 30), single)
    with pytest.warns(errors.SkippedLayerWarning, match="one number an edge"):
        kanmeta.convert(model, hidden=4)
    assert list(kanmeta.prompts(model)) == ["0"]
    assert type(model[1]) is type(single)
    assert model(torch.rand(2, 30)).shape == (2, 30)
