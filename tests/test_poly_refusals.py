"""Polynomial convolutions of torch-conv-kan that are recognised and not converted, and why."""

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import NothingToConvertError
from recipes.reference.conv_gram import KAGNConv1DLayerV2, KAGNConv2DLayer, KAGNConvNDLayer
from recipes.reference.conv_poly import KALNConv2DLayer, PolyConv, degree_major
from tests import upstream
from tests.test_reference import against_the_real_library, built


class KABNConvNDLayer(PolyConv):
    """As the library's: a basis that is 1 everywhere."""

    ndim = 2

    def bernstein_poly(self, x: Tensor, degree: int) -> Tensor:
        return degree_major(torch.ones(*x.shape, degree + 1))


class PEFTKAGNConvNDLayer(KAGNConvNDLayer):
    """As the library's, with one further degree and two that are trained."""

    ndim = 2

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__(inputs, outputs, kernel_size)
        kernel = (kernel_size, kernel_size)
        self.poly_weights_extra = nn.Parameter(torch.zeros(1, outputs, inputs, *kernel))
        self.beta_weights_extra = nn.Parameter(torch.zeros(1))
        self.poly_weights_delta = nn.Parameter(torch.zeros(1, outputs, 2 * inputs, *kernel))
        self.beta_weights_delta = nn.Parameter(torch.zeros(2))
        self.delta_indices = nn.Parameter(torch.arange(2 * inputs), requires_grad=False)

    def fuse_layer(self) -> nn.Module:
        raise NotImplementedError


class NotKALN(nn.Module):
    """Tensors and name of KALN, but another method."""

    def __init__(self) -> None:
        super().__init__()
        layer = KALNConv2DLayer(2, 3, 2)
        self.base_conv, self.poly_weights = layer.base_conv, layer.poly_weights


NotKALN.__name__ = "KALNConvNDLayer"


def refused(layer: nn.Module, reason: str) -> None:
    with pytest.raises(NothingToConvertError, match=reason):
        kanmeta.plan(nn.Sequential(layer))
    beside = kanmeta.plan(nn.Sequential(KAGNConv2DLayer(2, 3, 2), layer))
    assert [part.name for part in beside.layers] == ["0"]
    assert reason in beside.skipped[0]


def test_a_basis_of_ones_is_refused() -> None:
    refused(KABNConvNDLayer(2, 3, 2), "its basis is 1 everywhere")


def test_groups_of_v2_are_refused() -> None:
    refused(KAGNConv1DLayerV2(4, 4, 2, groups=2), "with groups=2 its library cuts the polynomials")


def test_peft_is_refused() -> None:
    refused(PEFTKAGNConvNDLayer(2, 3, 2), "convert what fuse_layer returns")


def test_the_method_tells_legendre_apart() -> None:
    refused(NotKALN(), "no method compute_legendre_polynomials")


# ------------------------------------------------------------------ the real torch-conv-kan


@against_the_real_library
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_real_kabn_is_refused_and_broken(ndim: int) -> None:
    layers = upstream.torch_conv_kan("kan_convs.kabn_conv")
    layer = getattr(layers, f"KABNConv{ndim}DLayer")(2, 3, 2)
    refused(layer, "its basis is 1 everywhere")
    x = torch.rand(1, 2, *[3] * ndim, requires_grad=True)
    basis = layer.bernstein_poly(x.detach(), 3)
    torch.testing.assert_close(basis, torch.ones_like(basis), rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        layer(x).sum().backward()


@against_the_real_library
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_groups_of_the_real_v2_are_refused(ndim: int) -> None:
    layers = upstream.torch_conv_kan("kan_convs.kagn_conv_v2")
    layer = getattr(layers, f"KAGNConv{ndim}DLayerV2")
    refused(layer(4, 4, 2, groups=4), "with groups=4 its library cuts the polynomials")
    assert len(kanmeta.plan(nn.Sequential(layer(4, 4, 2))).layers) == 1


@against_the_real_library
@pytest.mark.parametrize("trainable", [None, [1, 2]])
@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_real_peft_layer_is_refused_and_what_it_fuses_is_not(
    extra: int, trainable: list[int] | None, groups: int
) -> None:
    peft = upstream.torch_conv_kan("kan_peft").PEFTKAGNConvNDLayer
    real = upstream.torch_conv_kan("kan_convs").KAGNConv2DLayer
    layer = peft.wrap_layer(built(real, 4, 6, 2, groups=groups).float(), trainable, extra)
    refused(layer, "convert what fuse_layer returns")
    if extra:  # else fuse_layer fails in the library itself
        (part,) = kanmeta.plan(nn.Sequential(layer.fuse_layer())).layers
        assert part.spec.adapter == "torch-conv-kan/kagn-conv"
        assert part.spec.dim_w == 1 + 4 + extra


@against_the_real_library
def test_a_converted_layer_is_wrapped_after_materialize() -> None:
    peft = upstream.torch_conv_kan("kan_peft").PEFTKAGNConvNDLayer
    real = upstream.torch_conv_kan("kan_convs").KAGNConv2DLayer
    model = nn.Sequential(built(real, 8, 8, 3).float())
    generator = torch.Generator().manual_seed(1)
    kanmeta.convert(model, generator=generator)
    with pytest.raises(RuntimeError, match="poly_weights"):
        peft.wrap_layer(model[0])
    x = torch.rand(1, 8, 4, 4, generator=generator)
    expected = model(x)
    kanmeta.materialize(model)
    torch.testing.assert_close(peft.wrap_layer(model[0])(x), expected)
