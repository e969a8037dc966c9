"""The fully connected reference layers equal the real libraries, and independent formulas."""

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scipy import special
from torch import Tensor, nn
from torch.testing import assert_close

from recipes.reference import (
    fast_kan,
    fc_poly,
    fc_spline,
    polynomials,
    pykan_early,
    relu_kan,
    wav_kan,
)
from recipes.reference.b_spline import b_spline_basis
from tests import packages, upstream
from tests.test_reference import (
    against_the_real_library,
    assert_same_function,
    built,
    close,
    generator,
    inputs,
)


def layers() -> Any:
    return upstream.torch_conv_kan("kans.layers")


@pytest.fixture
def double_by_default() -> Iterator[None]:
    """Some layers of the library make float32 tensors in their forward otherwise."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def scattered(layer: nn.Module) -> nn.Module:
    """Move every trained tensor away from its first value, which is often 0 or 1."""
    with torch.no_grad():
        for p in layer.parameters():
            if p.requires_grad:
                p.data = p.data.contiguous()  # ReLU-KAN's phases are expanded views
                p += torch.randn(p.shape, generator=generator(5), dtype=p.dtype) * 0.2
    return layer


# ------------------------------------------------------------------ the real libraries


@against_the_real_library
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grid_size": 3, "spline_order": 2, "grid_range": [-2, 1]},
        {"grid_size": 8, "spline_order": 1, "base_activation": nn.Tanh},
    ],
    ids=str,
)
def test_spline_layer_equals_upstream(options: dict[str, Any]) -> None:
    theirs = scattered(built(layers().KANLayer, 5, 4, **options))
    ours = built(fc_spline.KANLayer, 5, 4, seed=1, **options)
    close(ours.grid, theirs.grid)
    ours.grid = theirs.grid = theirs.grid.double()  # the library's stays in float32
    assert_same_function(ours, theirs, inputs(7, 5))


@against_the_real_library
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("act", [nn.SiLU, nn.Tanh])
@pytest.mark.parametrize("name", ["KALNLayer", "GRAMLayer"])
def test_polynomial_layers_equal_upstream(name: str, act: type[nn.Module], degree: int) -> None:
    theirs = scattered(built(getattr(layers(), name), 5, 4, degree, act))
    ours = built(getattr(fc_poly, name), 5, 4, degree, act, seed=1)
    assert_same_function(ours, theirs, inputs(7, 5))


@against_the_real_library
@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_chebyshev_layer_equals_upstream(degree: int) -> None:
    theirs = scattered(built(layers().ChebyKANLayer, 5, 4, degree))
    ours = built(fc_poly.ChebyKANLayer, 5, 4, degree, seed=1)
    assert_same_function(ours, theirs, inputs(7, 5))


@against_the_real_library
def test_chebyshev_layer_has_gradients_where_upstream_has_none() -> None:
    """tanh rounds to 1 and the library's acos has no derivative there."""
    theirs = built(layers().ChebyKANLayer, 2, 2, 3)
    ours = built(fc_poly.ChebyKANLayer, 2, 2, 3)
    for layer, finite in ((ours, True), (theirs, False)):
        x = torch.full((1, 2), 40.0, dtype=torch.float64, requires_grad=True)
        layer(x).sum().backward()
        assert torch.isfinite(x.grad).all() == finite


@against_the_real_library
@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("exponents", [(1.0, 1.0), (0.5, 2.0)], ids=str)
def test_jacobi_layer_equals_upstream(degree: int, exponents: tuple[float, float]) -> None:
    theirs = scattered(built(layers().JacobiKANLayer, 5, 4, degree, *exponents))
    ours = built(fc_poly.JacobiKANLayer, 5, 4, degree, *exponents, seed=1)
    assert_same_function(ours, theirs, inputs(7, 5))


@against_the_real_library
@pytest.mark.parametrize(
    ("sizes", "options", "inner"),
    [
        ((5, 4), {}, 4),
        ((24, 20), {}, 16),
        ((24, 8), {"dim_reduction": 2.5, "min_internal": 3, "degree": 2}, 9),
    ],
    ids=str,
)
def test_bottleneck_layer_equals_upstream(
    sizes: tuple[int, int], options: dict[str, Any], inner: int
) -> None:
    theirs = scattered(built(layers().BottleNeckGRAMLayer, *sizes, **options))
    ours = built(fc_poly.BottleNeckGRAMLayer, *sizes, seed=1, **options)
    assert ours.inner_dim == theirs.inner_dim == inner
    assert_same_function(ours, theirs, inputs(7, sizes[0]))


@against_the_real_library
@pytest.mark.parametrize(("g", "k"), [(5, 3), (1, 1), (4, 0)])
def test_relu_layer_equals_upstream(g: int, k: int) -> None:
    theirs = scattered(built(layers().ReLUKANLayer, 5, g, k, 4))
    ours = built(relu_kan.ReLUKANLayer, 5, g, k, 4, seed=1)
    assert_same_function(ours, theirs, inputs(7, 5) / 2.5)
    assert not relu_kan.ReLUKANLayer(5, g, k, 4, train_ab=False).phase_low.requires_grad


@against_the_real_library
@pytest.mark.parametrize("wavelet", wav_kan.WAVELETS)
@pytest.mark.parametrize("training", [True, False])
def test_wavelet_layers_equal_upstream(wavelet: str, training: bool) -> None:
    pairs = [
        (upstream.wav_kan().KANLinear, wav_kan.KANLinear),
        (layers().WavKANLayer, wav_kan.WavKANLayer),
    ]
    for upstream_class, our_class in pairs:
        theirs = scattered(built(upstream_class, 5, 4, wavelet_type=wavelet)).train(training)
        ours = built(our_class, 5, 4, wavelet_type=wavelet, seed=1).train(training)
        assert_same_function(ours, theirs, inputs(7, 5))
        dead = our_class is wav_kan.KANLinear
        assert (ours.weight1.grad is None) == (theirs.weight1.grad is None) == dead


@against_the_real_library
def test_wavelet_network_equals_upstream() -> None:
    theirs = built(upstream.wav_kan().KAN, [6, 5, 3], "morlet")
    assert_same_function(built(wav_kan.KAN, [6, 5, 3], "morlet", seed=1), theirs, inputs(7, 6))


@against_the_real_library
@pytest.mark.parametrize("base", [True, False])
def test_the_librarys_copy_of_fast_kan_equals_ours(base: bool) -> None:
    theirs = scattered(built(layers().FastKANLayer, 5, 4, use_base_update=base))
    ours = built(fast_kan.FastKANLayer, 5, 4, use_base_update=base, seed=1)
    assert_same_function(ours, theirs, inputs(7, 5))


@pytest.mark.parametrize(("num", "k"), [(5, 3), (3, 2), (4, 1)])
def test_early_pykan_layer_equals_the_real_one(
    num: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packages.FOLDER / "kan_gpt"
    if not folder.is_dir():
        pytest.skip(f"NOT COMPARED WITH THE REAL LIBRARY: kan_gpt is not in {packages.FOLDER}")
    monkeypatch.syspath_prepend(folder)
    real = importlib.import_module("kan_gpt.kan.KANLayer").KANLayer
    theirs = scattered(built(real, 5, 4, num, k))
    ours = built(pykan_early.KANLayer, 5, 4, num, k, seed=1)
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight_sharing[3], layer.mask[6] = 11, 0
        theirs.grid += torch.linspace(0, 0.3, 20, dtype=torch.float64).unsqueeze(1)  # a row an edge
    assert_same_function(_First(ours), _First(theirs), inputs(7, 5))
    for mine, real in zip(ours(inputs(7, 5)), theirs(inputs(7, 5)), strict=True):
        close(mine, real)


class _First(nn.Module):
    """The output of a layer that returns its activations as well."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


# ------------------------------------------------------------------ first values

STARTS: dict[str, tuple[Callable[[], Any], type[nn.Module], tuple[Any, ...]]] = {
    "KANLayer": (lambda: layers().KANLayer, fc_spline.KANLayer, (60, 80)),
    "KALNLayer": (lambda: layers().KALNLayer, fc_poly.KALNLayer, (60, 80)),
    "ChebyKANLayer": (lambda: layers().ChebyKANLayer, fc_poly.ChebyKANLayer, (60, 80, 3)),
    "JacobiKANLayer": (lambda: layers().JacobiKANLayer, fc_poly.JacobiKANLayer, (60, 80, 3)),
    "GRAMLayer": (lambda: layers().GRAMLayer, fc_poly.GRAMLayer, (60, 80)),
    "BottleNeckGRAMLayer": (
        lambda: layers().BottleNeckGRAMLayer,
        fc_poly.BottleNeckGRAMLayer,
        (60, 80, 3, nn.SiLU, 1),
    ),
    "ReLUKANLayer": (lambda: layers().ReLUKANLayer, relu_kan.ReLUKANLayer, (60, 5, 3, 80)),
    "WavKANLayer": (lambda: layers().WavKANLayer, wav_kan.WavKANLayer, (60, 80)),
    "KANLinear": (lambda: upstream.wav_kan().KANLinear, wav_kan.KANLinear, (60, 80)),
}


@against_the_real_library
@pytest.mark.parametrize("name", STARTS)
def test_layers_start_like_upstream(name: str) -> None:
    """The same distributions: mean, spread and range of large tensors; small ones in spread."""
    get, our_class, sizes = STARTS[name]
    ours, theirs = built(our_class, *sizes, seed=1), built(get(), *sizes)
    for key, mine in ours.named_parameters():
        real = theirs.get_parameter(key)
        assert mine.requires_grad == real.requires_grad
        if mine.numel() > 1000:
            real = real.detach()
            spread = real.std()
            assert_close(mine.std(), spread, rtol=0.05, atol=1e-12)
            assert_close(mine.mean(), real.mean(), rtol=0.05, atol=float(spread) * 0.1)
            assert_close(mine.abs().max(), real.abs().max(), rtol=0.3, atol=1e-12)
        elif key == "beta_weights":
            assert 0 < mine.std() < 4 / (60 * 4)
        elif (real == real.flatten()[0]).all():
            assert torch.equal(mine, real)


# ------------------------------------------------------------------ independent formulas


@pytest.mark.parametrize("degree", [0, 1, 4])
def test_polynomials_are_those_of_the_handbook(degree: int) -> None:
    x = torch.linspace(-1, 1, 11, dtype=torch.float64)
    n, column = range(degree + 1), x.unsqueeze(1).numpy()
    close(polynomials.chebyshev(x, degree), torch.as_tensor(special.eval_chebyt(n, column)))
    close(polynomials.legendre(x, degree), torch.as_tensor(special.eval_legendre(n, column)))
    close(
        polynomials.jacobi(x, degree, 0.5, 2),
        torch.as_tensor(special.eval_jacobi(n, 0.5, 2, column)),
    )


def test_gram_polynomials() -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    beta = torch.tensor([9.0, 0.3, -0.2, 9.0], dtype=torch.float64)
    second = x**2 - 3 / 4 * 3 * 0.3
    third = x * second - 5 * 4 / 9 * 15 * -0.2 * x
    expected = torch.stack([torch.ones_like(x), x, second, third], dim=1)
    close(polynomials.gram(x, 3, beta), expected)


def edge_sum(layer: nn.Module, coefficients: Tensor, basis: Tensor, base: Tensor | None) -> Tensor:
    """``(N, out)`` from ``(out, in, K)``, ``(N, in, K)`` and ``(N, in)``, one number at a time."""
    out = torch.zeros(len(basis), len(coefficients), dtype=torch.float64)
    for o, row in enumerate(coefficients):
        for i, w in enumerate(row):
            out[:, o] += basis[:, i] @ w
            if base is not None:
                weight = layer.base_weights if hasattr(layer, "base_weights") else layer.base_weight
                out[:, o] += base[:, i] * weight[o, i]
    return out


def test_layers_follow_their_formulas() -> None:
    x = inputs(7, 3).detach()
    silu, t = nn.functional.silu(x), torch.tanh(x)

    layer = scattered(built(fc_poly.ChebyKANLayer, 3, 2, 3))
    s = edge_sum(layer, layer.cheby_coeffs.transpose(0, 1), polynomials.chebyshev(t, 3), None)
    close(layer(x), s)

    layer = scattered(built(fc_poly.KALNLayer, 3, 2, 2))
    basis = polynomials.legendre((x - x.min()) / (x.max() - x.min()) * 2 - 1, 2)
    s = edge_sum(layer, layer.poly_weight.view(2, 3, 3), basis, silu)
    close(layer(x), nn.functional.silu(layer.layer_norm(s)))

    layer = scattered(built(fc_poly.JacobiKANLayer, 3, 2, 3, act=nn.Tanh))
    basis = polynomials.jacobi(t, 3, 1, 1)
    s = edge_sum(layer, layer.jacobi_coeffs.transpose(0, 1), basis, torch.tanh(x))
    close(layer(x), torch.tanh(layer.norm(s)))

    layer = scattered(built(fc_poly.GRAMLayer, 3, 2, 3))
    basis = nn.functional.silu(polynomials.gram(t, 3, layer.beta_weights))
    s = edge_sum(layer, layer.grams_basis_weights.transpose(0, 1), basis, silu)
    close(layer(x), nn.functional.silu(layer.norm(s)))

    layer = scattered(built(fc_spline.KANLayer, 3, 2, base_activation=nn.SiLU))
    layer.grid = layer.grid.double()
    basis = b_spline_basis(x, layer.grid, 3).transpose(1, 2)
    s = edge_sum(layer, layer.spline_weight, basis, silu)
    close(layer(x), layer.prelu(layer.layer_norm(s)))


def test_relu_bumps_have_height_one_on_their_support() -> None:
    layer = built(relu_kan.ReLUKANLayer, 1, 4, 2, 1)
    x = torch.linspace(-1, 2, 4801, dtype=torch.float64)  # has 1/8 and its multiples
    basis = relu_kan.relu_bumps(x.unsqueeze(1), layer.phase_low[0], layer.phase_high[0], layer.r)
    for n in range(6):
        inside = x[basis[:, n] > 0]
        assert_close(inside.min(), torch.tensor((n - 2) / 4).double(), rtol=0, atol=1e-3)
        assert_close(inside.max(), torch.tensor((n + 1) / 4).double(), rtol=0, atol=1e-3)
        assert_close(basis[:, n].max(), torch.tensor(1.0).double())


def test_relu_layer_reads_its_kernel_flat() -> None:
    layer = built(relu_kan.ReLUKANLayer, 3, 2, 1, 2)
    x = torch.tensor([[0.1, 0.4, 0.9]], dtype=torch.float64)
    w = layer.equal_size_conv.weight.reshape(2, 3, 3)
    basis = relu_kan.relu_bumps(x[0].unsqueeze(1), layer.phase_low, layer.phase_high, layer.r)
    expected = torch.einsum("oik,ik->o", w, basis) + layer.equal_size_conv.bias
    close(layer(x)[0], expected)


def test_wavelets() -> None:
    u = torch.tensor([-0.9, -0.4, 0.0, 0.3, 0.7, 1.2], dtype=torch.float64)
    names = ("mexican_hat", "morlet", "dog", "meyer", "shannon")
    found = torch.stack([wav_kan.WAVELETS[name](u) for name in names], dim=1)
    for i, (value, at) in enumerate(zip(u.tolist(), found.tolist(), strict=True)):
        g, v = math.exp(-(value**2) / 2), abs(value)
        step = min(max(2 * v - 1, 0), 1)
        rise = 35 * step**4 - 84 * step**5 + 70 * step**6 - 20 * step**7
        window = 0.54 - 0.46 * math.cos(2 * math.pi * i / 5)
        assert at == pytest.approx(
            [
                0.8673250705840776 * (value**2 - 1) * g,
                math.cos(5 * value) * g,
                -value * g,
                math.sin(math.pi * v) * math.cos(math.pi / 2 * rise),
                (math.sin(value) / value if value else 1) * window,
            ],
            rel=1e-12,
            abs=1e-15,
        )


def test_wavelet_layers_follow_their_formula() -> None:
    x = inputs(7, 3).detach()
    for cls in (wav_kan.KANLinear, wav_kan.WavKANLayer):
        layer = scattered(built(cls, 3, 2, "dog")).eval()
        expected = torch.zeros(7, 2, dtype=torch.float64)
        for o in range(2):
            for i in range(3):
                u = (x[:, i] - layer.translation[o, i]) / layer.scale[o, i]
                expected[:, o] -= layer.wavelet_weights[o, i] * u * torch.exp(-(u**2) / 2)
                if cls is wav_kan.WavKANLayer:
                    expected[:, o] += layer.weight1[o, i] * nn.functional.silu(x[:, i])
        close(layer(x), layer.bn(expected))


def test_unknown_wavelet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wavelet_type='haar'; expected one of mexican_hat"):
        wav_kan.KANLinear(3, 2, "haar")


def test_early_pykan_follows_its_formula() -> None:
    model = scattered(built(pykan_early.KAN, [3, 2], grid=4, k=2))
    (layer,), x = model.act_fun, inputs(7, 3).detach()
    layer.weight_sharing[5] = 1
    knots = torch.linspace(-2, 2, 9, dtype=torch.float64).expand(3, -1)
    basis = b_spline_basis(x, knots, 2)
    expected = model.biases[0].weight.repeat(7, 1)
    for e in range(6):
        o, i = divmod(e, 3)
        spline = basis[:, :, i] @ layer.coef[1 if e == 5 else e]
        base = layer.scale_base[e] * nn.functional.silu(x[:, i])
        expected[:, o] += base + layer.scale_sp[e] * spline
    close(model(x), expected)
