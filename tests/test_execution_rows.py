"""Which layers run in blocks of rows, and with which random numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import ExecutionError, PlanError
from kanmeta.shadow import rows_are_mixed
from recipes.reference import conv_kan, efficient_kan, fast_kan
from tests.cases import EXAMPLE, case
from tests.execution_help import SMALL, assert_same, derivatives

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


def test_random_numbers_are_those_of_the_forward() -> None:
    """A numerical derivative with the seed fixed is that of the masks drawn in forward."""
    layer = conv_kan.KANConv2DLayer(2, 3, 2, dropout=0.4).double()
    model = kanmeta.convert(layer, execution="stream")
    kanmeta.set_execution(model, "stream", budget=SMALL)
    x = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    weights = torch.randn(5, 3, 3, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return (model(x) * weights).sum()

    leaf = x.clone().requires_grad_()
    value = loss(leaf)
    torch.rand(7)  # something else draws in between
    before = torch.get_rng_state()
    (gradient,) = torch.autograd.grad(value, leaf)
    assert torch.equal(before, torch.get_rng_state())  # nothing else sees the replay
    direction = torch.randn_like(x)
    step = 1e-6
    numeric = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric.detach(), rtol=1e-6, atol=1e-8)
    assert not torch.equal(model(x), model(x))


def batch_norm_net() -> nn.Module:
    layer = conv_kan.KANConv2DLayer(2, 3, 2, norm_layer=nn.BatchNorm2d).double()
    return kanmeta.convert(layer, execution="materialize")


def test_batch_norm_is_not_streamed_in_training() -> None:
    model, x = batch_norm_net(), torch.rand(4, 2, 4, 4, dtype=torch.float64)
    spec = model._kanmeta.spec
    assert "statistics" in (rows_are_mixed(model, spec) or "")
    expected = derivatives(model, x, model)
    mean = model.layer_norm[0].running_mean.clone()
    model.layer_norm[0].reset_running_stats()
    kanmeta.set_execution(model, "stream", budget=SMALL)
    assert_same(derivatives(model, x, model), expected)
    torch.testing.assert_close(model.layer_norm[0].running_mean, mean)
    model.eval()
    assert rows_are_mixed(model, spec) is None


def test_a_norm_or_hook_that_is_not_known_is_not_streamed() -> None:
    class Mixing(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    layer = conv_kan.KANConv2DLayer(2, 3, 2, norm_layer=Mixing).double()
    model = kanmeta.convert(layer, execution="materialize")
    assert "not known" in (rows_are_mixed(model, model._kanmeta.spec) or "")
    x = torch.rand(4, 2, 4, 4, dtype=torch.float64)
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=SMALL)
    assert_same(derivatives(model, x, model), expected)

    hooked = case(EXAMPLE).convert(case(EXAMPLE).model(), execution="stream")
    seen: list[torch.Size] = []
    hooked.layers[0].spline_linear.register_forward_hook(lambda m, a, y: seen.append(y.shape))
    kanmeta.set_execution(hooked, "stream", budget=SMALL)
    hooked(torch.rand(6, 4, dtype=torch.float64))
    assert seen == [(6, 5)]


def _scaled(layer: nn.Module) -> None:
    """Replace a method of the layer, one that reads coefficients, on this object alone."""
    whole = layer.forward_group
    layer.forward_group = lambda x, g: 2 * whole(x, g)


def _bound(layer: nn.Module) -> None:
    """The same in a module inside."""
    child = layer.spline_linear
    whole = child.forward
    child.forward = lambda x: 3 * whole(x)


@pytest.mark.parametrize(
    ("build", "patch", "shape"),
    [
        (lambda: conv_kan.KANConv2DLayer(2, 3, 2), _scaled, (2, 4, 4)),
        (lambda: fast_kan.FastKANLayer(2, 3), _bound, (2,)),
    ],
)
def test_a_method_that_is_replaced_on_one_layer_is_seen(
    build: Callable[[], nn.Module], patch: Callable[[nn.Module], None], shape: tuple[int, ...]
) -> None:
    model = kanmeta.convert(build().double(), execution="materialize")
    x = torch.rand(6, *shape, dtype=torch.float64)
    before = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=SMALL)
    assert_same(derivatives(model, x, model), before)
    patch(model)
    assert "replaced on this object" in (rows_are_mixed(model, model._kanmeta.spec) or "")
    found = derivatives(model, x, model)
    kanmeta.set_execution(model, "materialize")
    assert_same(found, derivatives(model, x, model))
    assert not torch.allclose(found[0], before[0])


def test_a_forward_around_the_layer_s_own_does_not_keep_it_from_streaming() -> None:
    """As accelerate puts it."""
    model = kanmeta.convert(efficient_kan.KANLinear(3, 4), execution="stream")
    whole = model.forward
    model.forward = lambda x: whole(x)
    assert rows_are_mixed(model, model._kanmeta.spec) is None
    assert model(torch.rand(2, 3)).shape == (2, 4)
    assert model._kanmeta.compared[1]


def test_a_layer_that_never_streams_says_so() -> None:
    c = case("kaln-conv-2d-g2-tap")
    with pytest.raises(PlanError, match=r"layers.0 .KALN.*cannot run in blocks"):
        c.convert(c.model(), execution="stream")
    model = c.convert(c.model())
    with pytest.raises(PlanError, match="cannot run in blocks"):
        kanmeta.set_execution(model, "stream")


def test_outputs_that_cannot_be_joined() -> None:
    class FastKANLayer(fast_kan.FastKANLayer):
        def forward(self, x: Tensor, use_layernorm: bool = True) -> dict[str, Tensor]:
            return {"y": super().forward(x, use_layernorm)}

    layer = kanmeta.convert(FastKANLayer(4, 5), execution="stream")
    with pytest.raises(ExecutionError, match="returned a dict"):
        layer(torch.rand(3, 4))


class Centred(efficient_kan.KANLinear):
    """Its forward mixes rows, which the library's own does not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def test_a_subclass_with_a_forward_of_its_own_never_streams() -> None:
    layer, x = Centred(20, 30), torch.rand(50, 20)
    with pytest.raises(PlanError, match="cannot run in blocks of rows"):
        kanmeta.convert(layer, execution="stream")
    kanmeta.convert(layer)
    expected = layer(x)
    kanmeta.set_execution(layer, "auto", budget=1)
    torch.testing.assert_close(layer(x), expected)
