"""What is odd in the fully connected layers of torch-conv-kan, in Wav-KAN and in early pykan."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import (
    CoefficientWriteError,
    ModelMismatchError,
    NothingToConvertError,
    SkippedLayerWarning,
)
from recipes.reference import fc_poly, fc_spline, pykan_early, relu_kan, wav_kan
from tests import upstream

HIDDEN = 2


def real(name: str) -> Any:
    return getattr(upstream.torch_conv_kan("kans.layers"), name)


def adapters_of(model: nn.Module) -> list[str]:
    return [layer.spec.adapter for layer in kanmeta.plan(model, hidden=HIDDEN).layers]


# ------------------------------------------------------------------ wavelets


def test_equal_tensors_are_told_apart_by_the_class() -> None:
    """``weight1`` is dead in Wav-KAN's layer and in use in torch-conv-kan's."""

    class MyWavelets(wav_kan.KANLinear):
        pass

    dead, used = wav_kan.KANLinear(4, 3), wav_kan.WavKANLayer(4, 3)
    assert {n: p.shape for n, p in dead.named_parameters()} == {
        n: p.shape for n, p in used.named_parameters()
    }
    # WavKANLayer is a subclass of KANLinear here, in the library it is not: no difference.
    assert adapters_of(nn.Sequential(MyWavelets(4, 3))) == ["wav-kan"]
    assert adapters_of(nn.Sequential(used)) == ["torch-conv-kan/wavelet"]
    assert [s.path for s in kanmeta.plan(used, hidden=HIDDEN).layers[0].spec.slots][-1] == "weight1"


@pytest.mark.parametrize("get", [lambda: wav_kan, upstream.wav_kan], ids=["reference", "upstream"])
def test_the_dead_weight_is_said_and_dropped_on_request(get: Callable[[], Any]) -> None:
    model = get().KAN([20, 10, 5]).eval()
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    planned = kanmeta.plan(model, hidden=HIDDEN)
    assert "weight1 is dead" in str(planned)
    kept, dropped = kanmeta.convert(copy.deepcopy(model), hidden=HIDDEN), copy.deepcopy(model)
    kanmeta.convert(dropped, hidden=HIDDEN, drop_dead=True)
    numbers = [sum(p.numel() for p in m.parameters()) for m in (kept, dropped)]
    assert numbers[0] - numbers[1] == 20 * 10 + 10 * 5
    assert "layers.0.weight1" in kept.state_dict()
    assert "layers.0.weight1" not in dropped.state_dict()
    dropped(x).square().sum().backward()  # the library reads it all the same
    kanmeta.materialize(dropped)
    assert list(dropped.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("cls", [wav_kan.KANLinear, wav_kan.WavKANLayer])
def test_scales_start_at_the_librarys_value(cls: type[nn.Module]) -> None:
    """x is divided by them: they must not start near 0."""
    model = nn.Sequential(cls(6, 5), cls(5, 4))
    kanmeta.convert(model, hidden=HIDDEN)
    for layer in model:
        assert torch.equal(layer.scale, torch.ones_like(layer.scale))
        assert torch.equal(layer.translation, torch.zeros_like(layer.scale))
    before = model[0].scale.detach()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        optimiser.zero_grad()
        (model(x) - x[:, :4].sin()).square().mean().backward()
        optimiser.step()
    assert (model[0].scale - before).std() > 1e-4  # they move, and not all alike
    assert (model[0].scale > 0.5).all()


# ------------------------------------------------------------------ torch-conv-kan


class BernsteinKANLayer(nn.Module):
    """The tensors of the library's layer."""

    def __init__(self, inputs: int, outputs: int, degree: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(outputs)
        self.base_weights = nn.Parameter(torch.randn(outputs, inputs))
        self.bernstein_coeffs = nn.Parameter(torch.randn(inputs, outputs, degree + 1))


@pytest.mark.parametrize(
    "get", [lambda: BernsteinKANLayer, lambda: real("BernsteinKANLayer")], ids=["copy", "upstream"]
)
def test_the_broken_layer_is_refused_and_said(get: Callable[[], Any]) -> None:
    broken = get()(8, 8, 3)
    with pytest.raises(NothingToConvertError, match="its basis is 1 everywhere"):
        kanmeta.convert(nn.Sequential(broken))
    model = nn.Sequential(broken, fc_spline.KANLayer(8, 8))
    with pytest.warns(SkippedLayerWarning, match="its basis is 1 everywhere"):
        kanmeta.convert(model, hidden=HIDDEN)
    assert list(kanmeta.prompts(model)) == ["1"]


def test_the_real_bernstein_layer_is_still_broken() -> None:
    layer = real("BernsteinKANLayer")(3, 2, 4)
    x = torch.rand(5, 3)
    basis = type(layer).bernstein_poly.__wrapped__(layer, x, 4)
    assert torch.equal(basis, torch.ones_like(basis))
    with pytest.raises(RuntimeError, match="inplace"):
        layer(x.requires_grad_()).sum().backward()


@pytest.mark.parametrize("get", [lambda: relu_kan.ReLUKANLayer, lambda: real("ReLUKANLayer")])
def test_phases_can_be_trained_and_loaded(get: Callable[[], Any]) -> None:
    """Upstream's have stride 0: one number in many places."""

    def build() -> nn.Module:
        layer = get()(6, 3, 2, 4)
        for phase in (layer.phase_low, layer.phase_high):
            phase.data = phase.data[:1].expand(6, -1)
        return layer

    with pytest.raises(RuntimeError, match="more than one element"):
        build().load_state_dict(build().state_dict())
    layer = kanmeta.convert(build(), hidden=HIDDEN)
    optimiser = torch.optim.Adam(layer.parameters())
    layer(torch.rand(8, 6)).square().sum().backward()
    optimiser.step()
    assert (layer.phase_low.std(dim=0) > 0).any()  # every input has its own now
    other = kanmeta.convert(build(), hidden=HIDDEN)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.phase_low, layer.phase_low)
    assert kanmeta.materialize(other).phase_low.is_contiguous()


def test_bottleneck_leaves_the_outer_edges_alone() -> None:
    layer = fc_poly.BottleNeckGRAMLayer(40, 30, min_internal=5)
    base = layer.base_weights
    planned = kanmeta.plan(layer, hidden=HIDDEN)
    assert planned.layers[0].spec.edges == 25
    kanmeta.convert(layer, hidden=HIDDEN)
    assert layer.base_weights is base
    assert layer.prompts.shape == (5, 5, 1)


def test_own_activations_and_norms_are_no_obstacle() -> None:
    class Activation(nn.PReLU):
        pass

    spline = fc_spline.KANLayer(5, 4, base_activation=Activation)
    gram = fc_poly.GRAMLayer(4, 4, act=Activation)
    legendre = fc_poly.KALNLayer(4, 4, base_activation=Activation)
    legendre.layer_norm = nn.Identity()
    model = nn.Sequential(spline, gram, legendre)
    assert adapters_of(model) == [f"torch-conv-kan/{n}" for n in ("spline", "gram", "legendre")]


@pytest.mark.parametrize("get", [lambda: fc_spline.KANLayer, lambda: real("KANLayer")])
def test_the_grid_follows_the_layer(get: Callable[[], Any]) -> None:
    layer = get()(5, 4)
    kanmeta.convert(layer, hidden=HIDDEN)
    layer.double()
    assert layer.grid.dtype == torch.float64
    assert layer(torch.rand(3, 5, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("GRAMLayer", "gram_poly"),
        ("BottleNeckGRAMLayer", "gram_poly"),
        ("KALNLayer", "compute_legendre_polynomials"),
    ],
)
def test_the_librarys_caches_get_nothing(name: str, method: str) -> None:
    """They would hold 128 inputs, bases and graphs, with the generated tensors in them."""
    plain, x = real(name)(6, 5), torch.randn(7, 6)
    layer = kanmeta.convert(copy.deepcopy(plain), hidden=HIDDEN)

    def entries_after(layer: nn.Module) -> int:
        cached = getattr(real(name), method)
        cached.cache_clear()
        for _ in range(3):
            layer(x)
        return cached.cache_info().currsize

    assert entries_after(plain) == 3
    assert entries_after(layer) == 0


# ------------------------------------------------------------------ early pykan


def test_locked_edges_stay_locked() -> None:
    layer = pykan_early.KANLayer(5, 4)
    layer.weight_sharing[8] = 2  # edges (1, 3) and (0, 2)
    kanmeta.convert(layer, hidden=HIDDEN)
    x = torch.rand(6, 5)
    with torch.no_grad():
        layer.prompts.normal_(generator=torch.Generator().manual_seed(0))
    splines = layer(x[:, :1].repeat(1, 5))[3]
    assert torch.equal(splines[:, 1, 3], splines[:, 0, 2])
    assert not torch.equal(splines[:, 1, 2], splines[:, 0, 2])


def test_three_kinds_of_kan_layer_are_told_apart() -> None:
    """All are called KANLayer; the fourth, pykan 0.2.8's, has tests of its own."""
    early, spline = pykan_early.KANLayer(4, 3), fc_spline.KANLayer(4, 3)
    assert adapters_of(early) == ["pykan-early"]
    assert adapters_of(spline) == ["torch-conv-kan/spline"]
    early.k = 2  # a grid that does not fit
    with pytest.raises(NothingToConvertError, match="its grid has 6 knots a row"):
        kanmeta.convert(early)


def test_grid_updates_of_early_pykan_are_refused() -> None:
    class KANLayer(pykan_early.KANLayer):
        def update_grid_from_samples(self, x: Tensor) -> None:
            self.grid.data = self.grid.data + 1

    layer = KANLayer(8, 8)
    kanmeta.convert(layer, hidden=HIDDEN)
    grid = layer.grid.clone()
    with pytest.raises(CoefficientWriteError, match=r"train_kan\(..., update_grid=False\)"):
        layer.update_grid_from_samples(torch.rand(9, 8))
    assert torch.equal(layer.grid, grid)


def test_a_file_of_another_wavelet_is_refused(tmp_path: Path) -> None:
    layer = wav_kan.KANLinear(20, 30, wavelet_type="morlet")
    kanmeta.convert(layer)
    kanmeta.save(layer, tmp_path / "layer.safetensors")
    with pytest.raises(ModelMismatchError, match=r"expected \{'wavelet_type': 'morlet'\}, found"):
        kanmeta.load(wav_kan.KANLinear(20, 30, wavelet_type="dog"), tmp_path / "layer.safetensors")
