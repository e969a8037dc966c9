"""The convolutional reference layers equal those of torch-conv-kan, and their formulas."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from recipes.reference import conv_fast_kan, conv_kan, conv_relu_kan, conv_wav_kan
from recipes.reference.conv_groups import bottleneck_channels
from tests import upstream
from tests.test_reference import (
    against_the_real_library,
    assert_same_function,
    built,
    close,
    generator,
    inputs,
)

FAMILIES = {
    "KANConv": conv_kan,
    "FastKANConv": conv_fast_kan,
    "ReLUKANConv": conv_relu_kan,
    "BottleNeckReLUKANConv": conv_relu_kan,
    "WavKANConv": conv_wav_kan,
}
SMALL: dict[str, dict[str, object]] = {
    "KANConv": {
        "spline_order": 2,
        "grid_size": 3,
        "grid_range": [-2, 1],
        "base_activation": nn.ELU,
    },
    "FastKANConv": {"grid_size": 3, "grid_range": [-1, 2], "base_activation": nn.Tanh},
    "ReLUKANConv": {"g": 3, "k": 2, "train_ab": False},
    "BottleNeckReLUKANConv": {"g": 3, "k": 2, "dim_reduction": 2, "min_internal": 1},
    "WavKANConv": {"wav_version": "base", "wavelet_type": "morlet"},
}
OPTIONS = [
    *[(family, {}) for family in FAMILIES],
    *SMALL.items(),
    *[("WavKANConv", {"wavelet_type": w}) for w in ("dog", "meyer", "shannon")],
    ("WavKANConv", {"wav_version": "fast_plus_one"}),
]
GEOMETRY = {"kernel_size": 3, "padding": 2, "stride": 2, "dilation": 2}


def layer_class(family: str, ndim: int, ours: bool = True) -> type[nn.Module]:
    module = FAMILIES[family] if ours else upstream.torch_conv_kan("kan_convs")
    return getattr(module, f"{family}{ndim}DLayer")


def pair(family: str, ndim: int, *args: object, **kwargs: object) -> tuple[nn.Module, nn.Module]:
    """Our layer and theirs, with values of their own."""
    theirs = built(layer_class(family, ndim, ours=False), *args, **kwargs)
    ours = built(layer_class(family, ndim), *args, seed=1, **kwargs)
    for name, phase in theirs.named_parameters():
        assert phase.is_contiguous(), name  # .double() made it so; else it could not be loaded
    if family == "KANConv":
        assert torch.equal(ours.grid, theirs.grid)
        # Upstream takes differences of knots in the dtype of its grid, float32.
        theirs.grid = theirs.grid.double()
    return ours, theirs


@against_the_real_library
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(("family", "options"), OPTIONS, ids=str)
def test_conv_equals_upstream(
    family: str, options: dict[str, object], ndim: int, groups: int
) -> None:
    if options.get("wav_version") == "fast_plus_one" and ndim == 3:
        pytest.skip("upstream has no such layer")
    ours, theirs = pair(family, ndim, 4, 6, groups=groups, **GEOMETRY, **options)
    assert_same_function(ours, theirs, inputs(3, 4, *[5] * ndim))
    theirs.load_state_dict(ours.state_dict(), strict=True)


@against_the_real_library
@pytest.mark.parametrize("family", FAMILIES)
def test_norm_and_dropout_as_upstream(family: str) -> None:
    """A norm with parameters, its arguments, and dropout at the same place."""
    options = {"norm_layer": nn.BatchNorm2d, "dropout": 0.5, "eps": 0.1}
    ours, theirs = pair(family, 2, 4, 6, 3, **options)
    x = inputs(3, 4, 5, 5)
    theirs.eval()(x)
    assert_same_function(ours.eval(), theirs, x)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (ours, theirs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            results.append(layer.train()(x))
    close(*results)
    for name, statistics in theirs.state_dict().items():
        close(ours.state_dict()[name], statistics)


# ------------------------------------------------------------------ the formulas


def hats(x: Tensor) -> Tensor:
    """Linear B-splines with the 4 intervals of [-1, 1]: 5 hats."""
    return torch.relu(1 - (x.unsqueeze(-1) - torch.linspace(-1, 1, 5).double()).abs() / 0.5)


def gaussians(x: Tensor) -> Tensor:
    return torch.exp(-(((x.unsqueeze(-1) - torch.tensor([-1.0, 0, 1])) / 1.0) ** 2))


def bumps(x: Tensor) -> Tensor:
    """Height 1 in the middle of supports that are 1.5 wide and start at -1, -0.5, 0 and 0.5."""
    x = (x.unsqueeze(-1) - torch.tensor([-1.0, -0.5, 0, 0.5])) / 1.5
    return torch.where((x > 0) & (x < 1), (4 * x * (1 - x)) ** 2, 0)


BASES = {
    "KANConv": (hats, {"spline_order": 1, "grid_size": 4}, "spline_conv", nn.GELU(), nn.PReLU()),
    "FastKANConv": (
        gaussians,
        {"grid_size": 3, "grid_range": (-1, 1)},
        "spline_conv",
        nn.SiLU(),
        nn.Identity(),
    ),
    "ReLUKANConv": (bumps, {"g": 2, "k": 2}, "relukan_conv", nn.SiLU(), nn.SiLU()),
}


@pytest.mark.parametrize("family", BASES)
def test_each_edge_adds_its_function(family: str) -> None:
    """y_o(t) = sum over i and taps a of base_oia b(x) + sum_k w_oiak B_k(x) at x = x_i(t + a)."""
    basis, options, conv, base, last = BASES[family]
    layer = built(layer_class(family, 1), 2, 3, 2, norm_layer=nn.Identity, **options)
    x = inputs(4, 2, 5).detach()
    base_weight = layer.base_conv[0].weight
    weight = getattr(layer, conv)[0].weight.unflatten(1, (2, -1))  # o i k a
    taps = x.unfold(2, 2, 1)  # n i t a
    y = torch.einsum("nita,oia->not", base(taps), base_weight)
    y = y + torch.einsum("nitak,oika->not", basis(taps), weight)
    assert basis(taps).abs().sum((0, 2, 3)).min() > 0.1
    assert_close(layer(x), last.double()(y), rtol=1e-6, atol=1e-6)  # the library's grid is float32


def wavelet_weight(layer: nn.Module) -> Tensor:
    """Of the first group, o i a, whichever version it is."""
    weights = layer.wavelet_conv[0].wavelet_weights
    if isinstance(weights, nn.ModuleList):
        return torch.cat([conv.weight for conv in weights])
    return weights.weight.reshape(*layer.wavelet_conv[0].scale.shape[1:3], -1)


@pytest.mark.parametrize("version", ["base", "fast", "fast_plus_one"])
def test_each_wavelet_edge_adds_its_function(version: str) -> None:
    options = {"norm_layer": nn.Identity, "wav_version": version, "wavelet_type": "dog"}
    layer = built(layer_class("WavKANConv", 1), 2, 3, 2, **options)
    (branch,) = layer.wavelet_conv
    with torch.no_grad():
        branch.scale.add_(torch.rand(branch.scale.shape, generator=generator()))
        branch.translation.add_(torch.rand(branch.scale.shape, generator=generator(1)))
    x = inputs(4, 2, 5).detach()
    taps = x.unfold(2, 2, 1)  # n i t a
    u = (taps.unsqueeze(1) - branch.translation.unsqueeze(-1)) / branch.scale.unsqueeze(-1)
    waves = torch.einsum("noita,oia->not", -u * torch.exp(-(u**2) / 2), wavelet_weight(layer))
    mixed = torch.einsum("pot,qo->pqt", waves, branch.wavelet_out.weight.squeeze(-1))
    base = torch.einsum("nita,oia->not", nn.functional.silu(taps), layer.base_conv[0].weight)
    assert mixed.std() > 0.01
    close(layer(x), base + mixed)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_layers_side_by_side(family: str, ndim: int) -> None:
    cls = layer_class(family, ndim)
    whole = built(cls, 4, 6, groups=2, **GEOMETRY)
    x = inputs(3, 4, *[5] * ndim)
    halves = []
    for group in (0, 1):
        half = built(cls, 2, 3, **GEOMETRY)
        state = {
            name.replace(f".{group}.", ".0.", 1): tensor
            for name, tensor in whole.state_dict().items()
            if f".{1 - group}." not in name[: name.find(".") + 3]
        }
        half.load_state_dict(state, strict=True)
        halves.append(half(x[:, 2 * group : 2 * group + 2]))
    assert (halves[0] - halves[1]).std() > 0.01
    close(whole(x), torch.cat(halves, dim=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_start_uniform_with_the_scale_of_their_inputs(family: str) -> None:
    layer = built(layer_class(family, 2), 16, 32, 3)
    weights = {n: p for n, p in layer.named_parameters() if n.endswith(".weight") and p.dim() > 1}
    assert len(weights) >= 2
    for name, weight in weights.items():
        bound = math.sqrt(3 / weight[0].numel())
        assert weight.abs().max() <= bound, name
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name


@pytest.mark.parametrize(
    ("arguments", "channels"),
    [((128, 64, 4, 16), 32), ((32, 128, 4, 16), 32), ((32, 24, 4, 16), 16), ((8, 6, 4, 16), 6)],
)
def test_bottleneck_channels(arguments: tuple[int, int, float, int], channels: int) -> None:
    assert bottleneck_channels(*arguments) == channels


@pytest.mark.parametrize(
    ("family", "ndim", "options", "message"),
    [
        ("KANConv", 2, {"groups": 3}, "groups=3 must be positive and divide input_dim=4"),
        ("KANConv", 2, {"groups": 4}, "output_dim=6"),
        ("ReLUKANConv", 1, {"groups": 0}, "groups=0"),
        ("WavKANConv", 2, {"wavelet_type": "haar"}, "expected one of mexican_hat, morlet"),
        ("WavKANConv", 2, {"wav_version": "slow"}, "expected one of base, fast"),
        ("WavKANConv", 3, {"wav_version": "fast_plus_one"}, "with 1 or 2 axes"),
    ],
)
def test_impossible_arguments_are_refused(
    family: str, ndim: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layer_class(family, ndim)(4, 6, 3, **options)
