"""The polynomial reference convolutions equal those of torch-conv-kan, and their formulas."""

from types import ModuleType

import pytest
import torch
from numpy.polynomial import chebyshev as np_chebyshev
from numpy.polynomial import legendre as np_legendre
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from recipes.reference import conv_chebyshev, conv_gram, conv_gram_bottleneck, conv_poly
from tests import upstream
from tests.test_polynomials import by_numpy, monic_betas, monic_legendre
from tests.test_reference import (
    against_the_real_library,
    assert_same_function,
    built,
    close,
    inputs,
)

FAMILIES: dict[str, tuple[ModuleType, str]] = {
    "KALNConv{}DLayer": (conv_poly, "kaln_conv"),
    "KAJNConv{}DLayer": (conv_poly, "kajn_conv"),
    "KACNConv{}DLayer": (conv_chebyshev, "kacn_conv"),
    "KAGNConv{}DLayer": (conv_gram, "kagn_conv"),
    "KAGNConv{}DLayerV2": (conv_gram, "kagn_conv_v2"),
    "BottleNeckKAGNConv{}DLayer": (conv_gram_bottleneck, "kagn_bottleneck_conv"),
    "KAGNExpert": (conv_gram_bottleneck, "kagn_bottleneck_conv"),
}
OPTIONS = [
    *[(family, {}) for family in FAMILIES],
    *[(family, {"degree": 5}) for family in FAMILIES],
    ("KAJNConv{}DLayer", {"a": 0.5, "b": 2.0, "degree": 4}),
    ("KAGNConv{}DLayer", {"degree": 1}),
    ("BottleNeckKAGNConv{}DLayer", {"dim_reduction": 2, "min_internal": 1}),
]
GEOMETRY = {"kernel_size": 3, "padding": 2, "stride": 2, "dilation": 2}


def make(
    family: str,
    ndim: int,
    *channels: int,
    real: bool = False,
    seed: int = 0,
    **options: object,
) -> nn.Module:
    """A layer of the reference, or of the real library."""
    ours, theirs = FAMILIES[family]
    module = upstream.torch_conv_kan(f"kan_convs.{theirs}") if real else ours
    cls = getattr(module, family.format(ndim))
    if family == "KAGNExpert":
        channels = (getattr(functional, f"conv{ndim}d"), *channels)
        options = {"degree": 3, "ndim": ndim} | options
    return built(cls, *channels, seed=seed, **options)


# ------------------------------------------------------------------ the real torch-conv-kan


@against_the_real_library
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=str)
def test_conv_equals_upstream(
    family: str, options: dict[str, object], ndim: int, groups: int
) -> None:
    options = GEOMETRY | {"groups": groups} | options
    theirs = make(family, ndim, 4, 6, real=True, **options)
    ours = make(family, ndim, 4, 6, seed=1, **options)
    with torch.no_grad():  # tiny at first: their recurrence would not be seen
        for name, beta in theirs.named_parameters():
            if name == "beta_weights":
                beta.copy_(torch.linspace(0.1, 0.3, len(beta)))
    assert_same_function(ours, theirs, inputs(3, 4, *[5] * ndim))
    theirs.load_state_dict(ours.state_dict(), strict=True)


@against_the_real_library
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "KAGNExpert"])
def test_norm_and_dropout_as_upstream(family: str) -> None:
    """A norm with parameters, its arguments, and dropout at the same place."""
    options = {"norm_layer": nn.BatchNorm2d, "eps": 0.1}
    if "BottleNeck" not in family:
        options["dropout"] = 0.5
    theirs = make(family, 2, 4, 6, 3, real=True, **options)
    ours = make(family, 2, 4, 6, 3, seed=1, **options)
    x = inputs(3, 4, 5, 5)
    theirs(x)
    assert_same_function(ours.eval(), theirs.eval(), x)
    results = []
    for layer in (ours, theirs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            results.append(layer.train()(x))
    close(*results)
    for name, statistics in theirs.state_dict().items():
        close(ours.state_dict()[name], statistics)


@against_the_real_library
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_values_are_spread_like_upstream(family: str, groups: int) -> None:
    options = {"groups": groups, "degree": 19, "kernel_size": 3}
    theirs = make(family, 1, 40, 80, real=True, **options)
    ours = make(family, 1, 40, 80, seed=1, **options)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        tolerance = 0.6 if name == "beta_weights" else 0.1  # 20 numbers only
        assert abs(a.std() / b.std() - 1) < tolerance, name
        assert abs(a.abs().max() / b.abs().max() - 1) < 2 * tolerance, name
        assert abs(a.mean()) < 0.5 * a.std(), name


@against_the_real_library
def test_betas_at_the_ends_and_inputs_far_out_have_no_effect() -> None:
    """The library holds Chebyshev arguments away from -1 and 1."""
    layer = make("KAGNConv{}DLayer", 1, 2, 2, 1, real=True, degree=3)
    layer(inputs(2, 2, 4)).sum().backward()
    assert (layer.beta_weights.grad == 0).tolist() == [True, False, False, True]
    layer = make("KACNConv{}DLayer", 1, 2, 2, 1, real=True)
    x = torch.full((1, 2, 4), 40.0, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().max() == 0


# ------------------------------------------------------------------ the formulas


def scaled(x: Tensor) -> Tensor:
    return -1 + 2 * (x - x.amin()) / (x.amax() - x.amin())


def same(x: Tensor) -> Tensor:
    return x


def legendre_3(x: Tensor) -> Tensor:
    return by_numpy(np_legendre.legval, x, 3)


def chebyshev_3(x: Tensor) -> Tensor:
    return by_numpy(np_chebyshev.chebval, x, 3)


def gram_3(x: Tensor) -> Tensor:
    return functional.silu(monic_legendre(x, 3))


SILU = functional.silu
BASES = {  # family -> (inner map of x, basis, base function, activation of the sum, options)
    "KALNConv{}DLayer": (scaled, legendre_3, same, SILU, {}),
    "KAJNConv{}DLayer": (torch.tanh, legendre_3, same, SILU, {"a": 0.0, "b": 0.0}),
    "KACNConv{}DLayer": (torch.tanh, chebyshev_3, None, same, {}),
    "KAGNConv{}DLayer": (torch.tanh, gram_3, SILU, SILU, {}),
    "KAGNConv{}DLayerV2": (torch.tanh, gram_3, SILU, SILU, {}),
    "BottleNeckKAGNConv{}DLayer": (torch.tanh, gram_3, SILU, SILU, {}),
    "KAGNExpert": (torch.tanh, gram_3, None, same, {}),
}


def weights_of(layer: nn.Module, family: str) -> tuple[Tensor | None, Tensor]:
    """Base weights ``o i a`` and coefficients ``o i k a`` of the only group."""
    tensors = {name.replace(".0.", "."): value for name, value in layer.named_parameters()}
    packed = tensors.get("poly_conv.weight")
    packed = tensors["poly_weights"][0] if packed is None else packed
    if family == "KACNConv{}DLayer":
        w = packed.unflatten(1, (-1, 4))
    else:
        w = packed.unflatten(1, (4, -1)).transpose(1, 2)
    return tensors.get("base_conv.weight"), w


@pytest.mark.parametrize("family", BASES)
def test_each_edge_adds_its_function(family: str) -> None:
    """y_o(t) = sum over i and taps a of base_oia b(x) + sum_k w_oika P_k(x) at x = x_i(t + a)."""
    inner, basis, base, last, options = BASES[family]
    if family != "KAGNExpert":
        options = {"norm_layer": nn.Identity, **options}
    outputs = 2 if "BottleNeck" in family else 3
    layer = make(family, 1, 2, outputs, kernel_size=2, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name == "beta_weights":
                parameter.copy_(monic_betas(3))
            elif "_proj" in name:  # of a bottleneck: its inner channels are those outside
                nn.init.dirac_(parameter)
    base_weight, weight = weights_of(layer, family)
    x = inputs(4, 2, 5).detach()
    values = basis(inner(x).unfold(2, 2, 1))  # n i t a k
    y = torch.einsum("nitak,oika->not", values, weight)
    if base is not None:
        y = y + torch.einsum("nita,oia->not", base(x.unfold(2, 2, 1)), base_weight)
    assert values.abs().sum((0, 1, 2, 3)).min() > 0.1
    assert_close(layer(x), last(y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("family", [f for f in FAMILIES if "V2" not in f])
def test_groups_are_layers_side_by_side(family: str, ndim: int) -> None:
    whole = make(family, ndim, 4, 6, groups=2, **GEOMETRY)
    x = inputs(3, 4, *[5] * ndim)
    halves = []
    for group in (0, 1):
        half = make(family, ndim, 2, 3, **GEOMETRY)
        state = {}
        for name, tensor in whole.state_dict().items():
            if name == "poly_weights":
                state[name] = tensor[group : group + 1]
            elif f".{group}." in name or name in ("beta_weights", "arange"):
                state[name.replace(f".{group}.", ".0.")] = tensor
        half.load_state_dict(state, strict=True)
        halves.append(half(x[:, 2 * group : 2 * group + 2]))
    assert (halves[0] - halves[1]).std() > 0.01
    close(whole(x), torch.cat(halves, dim=1))


def test_groups_of_v2_mix_channels_and_degrees() -> None:
    """Depthwise, 4 channels and degree 3: output k has the polynomials of degree k of all."""
    layer = make("KAGNConv{}DLayerV2", 1, 4, 4, 1, groups=4, norm_layer=nn.Identity)
    with torch.no_grad():
        layer.base_conv.weight.zero_()
    x = inputs(1, 4, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0, :, 0], x)[:, 0, :, 0]
    reacts = (jacobian.abs() > 1e-12).tolist()
    assert reacts == [[False] * 4, [True] * 4, [True] * 4, [True] * 4]
