"""What is odd in torch-conv-kan's spline, RBF, wavelet and ReLU convolutions."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import LargerModelWarning
from recipes.reference import conv_fast_kan, conv_kan, conv_relu_kan, conv_wav_kan
from tests import upstream


def converted(layer: nn.Module, **kwargs: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LargerModelWarning)  # the layers are tiny
        return kanmeta.convert(nn.Sequential(layer), **kwargs)


def image() -> Tensor:
    return torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def stride_0_phases() -> nn.Module:
    layer = conv_relu_kan.ReLUKANConv2DLayer(4, 4, 3)
    for name in ("phase_low", "phase_high"):
        phase = getattr(layer, name).detach()
        setattr(layer, name, nn.Parameter(phase[:, :1].expand(phase.shape)))
    return layer


@pytest.mark.parametrize(
    "build",
    [
        stride_0_phases,
        lambda: upstream.torch_conv_kan("kan_convs").ReLUKANConv2DLayer(4, 4, 3),
        lambda: upstream.torch_conv_kan("kan_convs").BottleNeckReLUKANConv2DLayer(4, 4, 3),
    ],
    ids=["reference", "upstream", "upstream-bottleneck"],
)
def test_phases_can_be_trained_and_loaded(build: object) -> None:
    layer = build()
    assert not layer.phase_low.is_contiguous()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match="single memory location"):
        layer.load_state_dict(state)
    model = converted(layer)
    before = layer.phase_low.detach().clone()
    model(image()).square().sum().backward()
    torch.optim.Adam(model.parameters(), lr=0.1).step()
    assert not torch.equal(layer.phase_low, before)
    kanmeta.materialize(model)
    layer.load_state_dict(state)
    assert torch.equal(layer.phase_low, before)


VERSIONS = ["base", "fast", "fast_plus_one"]


@pytest.mark.parametrize("version", VERSIONS)
def test_scale_and_translation_of_a_wavelet_belong_to_a_channel_pair(version: str) -> None:
    def layer() -> nn.Module:
        return conv_wav_kan.WavKANConv2DLayer(4, 6, 3, groups=2, wav_version=version)

    by_tap, by_pair = layer(), layer()
    (tap,) = kanmeta.plan(nn.Sequential(by_tap)).layers
    (pair,) = kanmeta.plan(nn.Sequential(by_pair), edge="pair").layers
    assert (tap.spec.edge_shape, tap.spec.dim_w) == ((2, 3, 2, 3, 3), 2)
    assert (pair.spec.edge_shape, pair.spec.dim_w) == ((2, 3, 2), 2 * 9 + 2)
    assert not pair.spec.notes
    assert [note.split()[0] for note in tap.spec.notes] == [
        "wavelet_conv.{g}.scale",
        "wavelet_conv.{g}.translation",
    ]
    assert all("edge='pair' converts it too" in note for note in tap.spec.notes)
    converted(by_tap)
    assert isinstance(by_tap.wavelet_conv[1].scale, nn.Parameter)
    converted(by_pair, edge="pair")
    for branch in by_pair.wavelet_conv:
        assert not isinstance(branch.scale, nn.Parameter)
        # As the library starts them: division by a scale that is drawn around 0 would explode.
        assert torch.equal(branch.scale, torch.ones(1, 3, 2, 1, 1))
        assert torch.equal(branch.translation, torch.zeros(1, 3, 2, 1, 1))


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (
            conv_kan.KANConv2DLayer(
                4, 4, 3, groups=2, base_activation=nn.PReLU, norm_layer=nn.BatchNorm2d
            ),
            {
                "base_activation.weight",
                "layer_norm.1.weight",
                "layer_norm.1.bias",
                "prelus.1.weight",
            },
        ),
        (
            conv_fast_kan.FastKANConv2DLayer(4, 4, 3, groups=2, affine=True),
            {"layer_norm.1.weight", "layer_norm.1.bias", "rbf.grid"},
        ),
        (conv_relu_kan.BottleNeckReLUKANConv2DLayer(4, 4, 3), {"base_conv.0.weight"}),
    ],
    ids=["kan", "fast", "bottleneck"],
)
def test_norms_and_activations_are_the_users_choice_and_stay(
    layer: nn.Module, kept: set[str]
) -> None:
    values = {name: p.detach().clone() for name, p in layer.named_parameters()}
    assert kept <= set(values)
    converted(layer)
    now = dict(layer.named_parameters())
    assert kept <= set(now)
    for name in kept:
        assert torch.equal(now[name], values[name])


def test_the_grid_of_a_converted_layer_follows_it() -> None:
    """It is a plain tensor, which ``.to()`` leaves where it is on the library's own layer."""
    layer = conv_kan.KANConv2DLayer(4, 4, 3)
    layer.to("meta")
    assert layer.grid.device.type == "cpu"
    layer = conv_kan.KANConv2DLayer(4, 4, 3)
    converted(layer).to("meta")
    assert layer.grid.device.type == "meta"
