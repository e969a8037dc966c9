"""Streaming where the surroundings of a call are unusual."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import kanmeta
from kanmeta.surgery import bindings
from recipes.reference import efficient_kan, fast_kan
from tests.cases import kan

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")

MAKERS = [lambda: kan(6, 5, 3), lambda: fast_kan.FastKAN([6, 5, 3])]


@pytest.fixture(params=MAKERS, ids=["efficient-kan", "fast-kan"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return kanmeta.convert(request.param(), execution="stream")


def compared(model: nn.Module) -> list[bool]:
    return [binding.compared[1] for _, binding in bindings(model)]


def test_the_first_call_in_inference_mode(model: nn.Module) -> None:
    x = torch.randn(4, 6)
    with torch.inference_mode():
        y = model(x)
    torch.testing.assert_close(model(x), y)
    assert all(compared(model))


@pytest.mark.parametrize("hidden", [4, 32])
def test_no_rows_at_first_and_later(hidden: int) -> None:
    for make in MAKERS:
        model = kanmeta.convert(make(), execution="stream", hidden=hidden)
        for _ in range(2):
            x = torch.zeros(0, 6, requires_grad=True)
            y = model(x)
            y.sum().backward()
            assert y.shape == (0, 3)
            assert x.grad is not None


def test_a_default_device_does_not_matter(model: nn.Module) -> None:
    x = torch.randn(4, 6)
    with torch.device("meta"):
        y = model(x)
    torch.testing.assert_close(model(x), y)
    assert all(compared(model))


def test_fake_tensors_materialize(model: nn.Module) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.randn(4, 6)).shape == (4, 3)


def test_a_forward_that_is_replaced_is_noticed(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(4, 6)
    y = model(x)
    for library in (efficient_kan.KANLinear, fast_kan.FastKANLayer):
        forward: Callable[..., Tensor] = library.forward
        monkeypatch.setattr(library, "forward", lambda s, x, f=forward: 2 * f(s, x))
    assert not torch.allclose(model(x), y)


def test_prompts_that_are_good_again_are_compared_again(model: nn.Module) -> None:
    x, layer = torch.randn(4, 6), next(b.layer for _, b in bindings(model))
    good = layer.prompts.detach().clone()
    with torch.no_grad():
        layer.prompts.fill_(torch.nan)
        model(x)
        assert not all(compared(model))
        layer.prompts.copy_(good)
    model(x)
    assert all(compared(model))


def test_hooks_of_parameters_see_the_gradients_of_training_only(model: nn.Module) -> None:
    seen: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(seen.append)
    model(torch.randn(4, 6)).sum().backward()
    assert len(seen) == sum(p.requires_grad for p in model.parameters())
