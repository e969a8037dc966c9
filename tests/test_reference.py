"""The reference layers equal the real libraries, and the formulas they were written from."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from recipes.reference import efficient_kan, fast_kan
from recipes.reference.b_spline import b_spline_basis, fit_coefficients
from tests import upstream

EXACT = {"rtol": 1e-12, "atol": 1e-12}

against_the_real_library = pytest.mark.skipif(not upstream.AVAILABLE, reason=upstream.HOW)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs, **EXACT)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(*shape: int, seed: int = 0) -> Tensor:
    """Values in and beyond the grids, and exactly on knots."""
    x = torch.rand(*shape, generator=generator(seed), dtype=torch.float64) * 5 - 2.5
    x.view(-1)[:3] = torch.tensor([-1.0, 1.0, 0.2])
    return x.requires_grad_()


def built(cls: type[nn.Module], *args: object, seed: int = 0, **kwargs: object) -> nn.Module:
    """A model in float64 whose first values are those of ``seed``, and no global side effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(*args, **kwargs).double()


def assert_same_function(ours: nn.Module, theirs: nn.Module, x: Tensor, **kwargs: object) -> None:
    """Equal outputs, input gradients and parameter gradients with ``theirs``' state."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    results = []
    for model in (ours, theirs):
        leaf = x.detach().clone().requires_grad_()
        y = model(leaf, **kwargs)
        weights = torch.rand(y.shape, generator=generator(9), dtype=y.dtype)
        (y * weights).sum().backward()
        results.append((y, leaf.grad, {n: p.grad for n, p in model.named_parameters()}))
    (y, dx, grads), (y_up, dx_up, grads_up) = results
    assert y.std() > 0.01  # the comparison means something
    close(y, y_up)
    close(dx, dx_up)
    for name, gradient in grads.items():
        if gradient is None:
            assert grads_up[name] is None, name
        else:
            close(gradient, grads_up[name])


# ------------------------------------------------------------------ the real efficient-kan


KAN_OPTIONS = [
    {},
    {"grid_size": 3, "spline_order": 2, "grid_range": [-2, 1]},
    {"grid_size": 8, "spline_order": 1, "base_activation": nn.Tanh, "grid_eps": 0.5},
    {"scale_noise": 0.7, "scale_base": 0.3, "scale_spline": 2.0},
]


@against_the_real_library
@pytest.mark.parametrize("scaler", [True, False])
@pytest.mark.parametrize("options", KAN_OPTIONS, ids=lambda o: ",".join(o) or "defaults")
def test_kan_linear_equals_upstream(options: dict[str, object], scaler: bool) -> None:
    up = upstream.efficient_kan()
    options = {**options, "enable_standalone_scale_spline": scaler}
    theirs = built(up.KANLinear, 5, 4, **options)
    ours = built(efficient_kan.KANLinear, 5, 4, seed=1, **options)
    assert not torch.equal(ours.base_weight, theirs.base_weight)
    assert_same_function(ours, theirs, inputs(7, 5))
    assert_same_function(ours, theirs, inputs(2, 3, 5))
    close(ours.regularization_loss(0.7, 0.2), theirs.regularization_loss(0.7, 0.2))
    close(ours.scaled_spline_weight, theirs.scaled_spline_weight)
    x, y = inputs(30, 5), inputs(30, 5, 4)
    close(ours.b_splines(x), theirs.b_splines(x))
    assert_close(ours.curve2coeff(x, y), theirs.curve2coeff(x, y), rtol=1e-10, atol=1e-10)


@against_the_real_library
@pytest.mark.parametrize("options", KAN_OPTIONS, ids=lambda o: ",".join(o) or "defaults")
def test_kan_equals_upstream(options: dict[str, object]) -> None:
    up = upstream.efficient_kan()
    theirs = built(up.KAN, [6, 5, 3], **options)
    ours = built(efficient_kan.KAN, [6, 5, 3], seed=1, **options)
    assert_same_function(ours, theirs, inputs(8, 6))
    close(ours.regularization_loss(), theirs.regularization_loss())


@against_the_real_library
@pytest.mark.parametrize("scaler", [True, False])
@pytest.mark.parametrize("options", KAN_OPTIONS, ids=lambda o: ",".join(o) or "defaults")
def test_kan_linear_starts_like_upstream(options: dict[str, object], scaler: bool) -> None:
    """The same seed gives the same first values: same distributions, same order of drawing."""
    up = upstream.efficient_kan()
    options = {**options, "enable_standalone_scale_spline": scaler}
    theirs = built(up.KANLinear, 5, 4, **options)
    ours = built(efficient_kan.KANLinear, 5, 4, **options)
    for name, tensor in theirs.state_dict().items():
        # The least-squares fits in float32 differ by rounding.
        assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@against_the_real_library
def test_update_grid_equals_upstream_where_upstream_is_right() -> None:
    up = upstream.efficient_kan()
    theirs = built(up.KANLinear, 5, 4, enable_standalone_scale_spline=False, scale_noise=2.0)
    ours = built(efficient_kan.KANLinear, 5, 4, enable_standalone_scale_spline=False)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(60, 5, generator=generator(), dtype=torch.float64) * 0.4
    before = theirs.grid.clone()
    ours.update_grid(x)
    theirs.update_grid(x)
    assert not torch.equal(theirs.grid, before)
    close(ours.grid, theirs.grid)
    assert_close(ours.spline_weight, theirs.spline_weight, rtol=1e-8, atol=1e-8)
    assert_same_function(ours, theirs, inputs(9, 5))  # on a grid that is uneven and per input


@against_the_real_library
def test_update_grid_of_a_network_equals_upstream() -> None:
    up = upstream.efficient_kan()
    ours, theirs = built(efficient_kan.KAN, [4, 3, 2]), built(up.KAN, [4, 3, 2])
    for model in (ours, theirs):
        for layer in model.layers:
            nn.init.ones_(layer.spline_scaler)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(60, 4, generator=generator(), dtype=torch.float64) * 0.4
    assert_close(ours(x, update_grid=True), theirs(x, update_grid=True), rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------ the real fast-kan


FAST_OPTIONS = [
    {},
    {"use_base_update": False},
    {"grid_min": -1.0, "grid_max": 3.0, "num_grids": 5, "base_activation": torch.tanh},
]


@against_the_real_library
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("options", FAST_OPTIONS, ids=lambda o: ",".join(o) or "defaults")
def test_fast_kan_layer_equals_upstream(options: dict[str, object], norm: bool) -> None:
    up = upstream.fast_kan()
    theirs = built(up.FastKANLayer, 5, 4, use_layernorm=norm, **options)
    ours = built(fast_kan.FastKANLayer, 5, 4, seed=1, use_layernorm=norm, **options)
    assert_same_function(ours, theirs, inputs(7, 5))
    assert_same_function(ours, theirs, inputs(2, 3, 5))
    assert_same_function(ours, theirs, inputs(7, 5), use_layernorm=False)


@against_the_real_library
@pytest.mark.parametrize("options", FAST_OPTIONS, ids=lambda o: ",".join(o) or "defaults")
def test_fast_kan_equals_upstream(options: dict[str, object]) -> None:
    up = upstream.fast_kan()
    theirs = built(up.FastKAN, [6, 5, 3], spline_weight_init_scale=0.4, **options)
    ours = built(fast_kan.FastKAN, [6, 5, 3], spline_weight_init_scale=0.4, **options)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert_same_function(ours, theirs, inputs(8, 6))


# ------------------------------------------------------------------ the formulas


def uneven_grid(inputs: int, size: int, order: int, seed: int) -> Tensor:
    steps = torch.rand(inputs, size + 2 * order + 1, generator=generator(seed), dtype=torch.float64)
    return (steps + 0.05).cumsum(1) - 2


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(0, 4), st.integers(0, 1000))
def test_b_splines_add_up_to_one_inside_the_grid(size: int, order: int, seed: int) -> None:
    grid = uneven_grid(3, size, order, seed)
    low, high = grid[:, order], grid[:, order + size]
    share = torch.rand(50, 1, generator=generator(seed), dtype=torch.float64)
    basis = b_spline_basis(low + share * (high - low), grid, order)
    assert basis.shape == (50, size + order, 3)
    assert (basis >= 0).all()
    assert ((basis > 0).sum(1) <= order + 1).all()
    close(basis.sum(1), torch.ones(50, 3, dtype=torch.float64))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 1000))
def test_a_polynomial_is_reproduced(size: int, order: int, seed: int) -> None:
    """Degree-k splines contain the polynomials of degree k, on any grid."""
    grid = uneven_grid(2, size, order, seed)
    low, high = grid[:, order], grid[:, order + size]
    share = torch.linspace(0, 0.999, 60, dtype=torch.float64).unsqueeze(1)
    x = low + share * (high - low)
    factors = torch.randn(3, order + 1, generator=generator(seed), dtype=torch.float64)
    powers = torch.stack([((x - 0.3) / (high - low)) ** p for p in range(order + 1)])
    curves = torch.einsum("pni,op->nio", powers, factors)
    coefficients = fit_coefficients(x, curves, grid, order)
    assert coefficients.shape == (3, 2, size + order)
    again = torch.einsum("nki,oik->nio", b_spline_basis(x, grid, order), coefficients)
    assert_close(again, curves, rtol=1e-8, atol=1e-8)


def test_b_splines_of_repeated_knots_are_finite() -> None:
    grid = torch.tensor([[0.0, 0, 0, 0, 1, 1, 2, 2, 2, 2]], dtype=torch.float64)
    x = torch.linspace(0, 1.99, 40, dtype=torch.float64).unsqueeze(1)
    basis = b_spline_basis(x, grid, 3)
    close(basis.sum(1), torch.ones(40, 1, dtype=torch.float64))


def test_second_derivatives_of_b_splines() -> None:
    x = torch.tensor([[0.11], [0.37], [-0.52]], dtype=torch.float64, requires_grad=True)
    grid = uneven_grid(1, 6, 3, 0) - 1
    assert torch.autograd.gradgradcheck(lambda t: b_spline_basis(t, grid, 3), x)


def test_radial_basis_function() -> None:
    rbf = fast_kan.RadialBasisFunction(-1.0, 2.0, 4, denominator=0.7).double()
    x = inputs(3, 2).detach()
    y = rbf(x)
    assert y.shape == (3, 2, 4)
    for k, centre in enumerate((-1.0, 0.0, 1.0, 2.0)):
        close(y[..., k], torch.exp(-(((x - centre) / 0.7) ** 2)))
    assert not rbf.grid.requires_grad


def test_layer_norm_of_one_input_is_refused() -> None:
    with pytest.raises(ValueError, match="use_layernorm=False"):
        fast_kan.FastKANLayer(1, 2)
    fast_kan.FastKANLayer(1, 2, use_layernorm=False)


@pytest.mark.parametrize("scaler", [True, False])
def test_update_grid_keeps_the_function(scaler: bool) -> None:
    """Exactly, for curves that both grids can represent: cubic polynomials."""
    layer = built(efficient_kan.KANLinear, 3, 2, enable_standalone_scale_spline=scaler, bias=True)
    x = torch.rand(80, 3, generator=generator(), dtype=torch.float64) * 1.8 - 0.9
    curves = torch.stack([x**3 - x, 2 * x**2 + 0.3], dim=-1)
    with torch.no_grad():
        layer.spline_weight.copy_(layer.curve2coeff(x, curves))
        layer.bias.fill_(0.5)
    before, grid = layer(x), layer.grid.clone()
    layer.update_grid(x)
    assert (layer.grid - grid).abs().max() > 0.05
    assert (layer.grid.diff(dim=1) > 0).all()
    assert_close(layer(x), before, rtol=1e-9, atol=1e-9)


def test_update_grid_of_a_constant_input_is_finite() -> None:
    layer = built(efficient_kan.KANLinear, 3, 2)
    layer.update_grid(torch.zeros(20, 3, dtype=torch.float64))
    assert torch.isfinite(layer(torch.zeros(1, 3, dtype=torch.float64))).all()


@pytest.mark.parametrize(
    "model",
    [
        efficient_kan.KAN([4, 3, 2], bias=True),
        efficient_kan.KAN([4, 3, 2], enable_standalone_scale_spline=False, grid_size=3),
        fast_kan.FastKAN([4, 3, 2], base_bias=False),
    ],
    ids=["kan", "kan without scaler", "fastkan"],
)
def test_models_can_be_copied_compiled_and_exported(model: nn.Module) -> None:
    x = torch.rand(5, 4, generator=generator())
    y = model(x)
    assert y.shape == (5, 2)
    assert torch.equal(copy.deepcopy(model)(x), y)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), y)
    assert_close(torch.export.export(model, (x,)).module()(x), y)
    assert model(x[0]).shape == (2,)
    assert model(x[:0]).shape == (0, 2)


def test_counts_of_the_paper() -> None:
    """Tables 5 and 6, Fashion-MNIST, [784, 32, 10]: G=5 and k=3, and 8 centres (frozen grid)."""
    kan = efficient_kan.KAN([784, 32, 10], enable_standalone_scale_spline=False, bias=True)
    assert sum(p.numel() for p in kan.parameters()) == 228_714
    fast = fast_kan.FastKAN([784, 32, 10])
    assert sum(p.numel() for p in fast.parameters()) == 230_362
