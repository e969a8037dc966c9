"""The library's caches of basis functions keep nothing of a converted layer alive."""

import weakref

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from recipes.reference import conv_gram
from tests import upstream
from tests.test_reference import against_the_real_library, built, generator


class Kept:
    """A tensor that autograd has saved for a backward pass, for as long as its graph lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_after(model: nn.Module, forwards: int) -> int:
    """Saved tensors that are alive after so many forward passes whose outputs are dropped."""
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor.detach())  # an output would keep its own graph alive
        alive.add(kept)
        return kept

    x = torch.rand(1, 4, 4, generator=generator())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        for _ in range(forwards):
            assert model(x).requires_grad
    return len(alive)


@pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=against_the_real_library)], ids=["ours", "upstream"]
)
def test_forwards_without_backward_keep_nothing(real: bool) -> None:
    """A cache keyed by tensors never hits, and keeps the graphs of the last 128 passes."""
    module = upstream.torch_conv_kan("kan_convs.kagn_conv") if real else conv_gram
    layer = module.KAGNConv1DLayer
    model = nn.Sequential(*(built(layer, 4, 4, kernel_size=1) for _ in range(2))).float()
    cached = type(model[0]).gram_poly
    cached.cache_clear()
    once = kept_after(model, 1)
    assert once > 0  # the library's own layer keeps them, so this test can fail
    assert kept_after(model, 10) >= 10 * once - 10
    assert cached.cache_info().currsize == 22
    cached.cache_clear()
    kanmeta.convert(model, hidden=2, generator=generator())
    assert kept_after(model, 200) == 0
    assert cached.cache_info().currsize == 0
    kanmeta.materialize(model)
    assert kept_after(model, 1) > 0
    cached.cache_clear()
