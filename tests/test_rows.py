"""What regenerated layers do not keep, and layers that only look as if rows were independent."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

import kanmeta
from kanmeta.cli.peak import LiveTensors
from kanmeta.independence import rows_are_independent
from kanmeta.surgery import bindings
from recipes.reference import efficient_kan, fast_kan
from tests.cases import kan

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


def alive_after_forward(execution: str) -> int:
    """Bytes of all tensors that live between forward and backward, apart from Parameters."""
    model = kanmeta.convert(fast_kan.FastKAN([40, 50, 30]), execution=execution, hidden=4)
    x = torch.randn(3, 40, requires_grad=True)
    with LiveTensors() as counter:
        y = model(x)
    assert y.requires_grad
    return counter.live


def test_regenerated_layers_keep_neither_coefficients_nor_hidden_activations() -> None:
    edges, hidden, dim_w = 40 * 50 + 50 * 30, 4, 9
    saved = alive_after_forward("materialize") - alive_after_forward("regenerate")
    assert saved >= 0.98 * edges * (hidden + dim_w) * 4  # the meta-learner's matrices are kept


@pytest.mark.parametrize("frozen", [True, False])
def test_a_change_between_forward_and_backward_is_noticed(frozen: bool) -> None:
    model = kanmeta.convert(kan(3, 4).double(), execution="regenerate").requires_grad_(not frozen)
    y = model(torch.randn(5, 3, dtype=torch.float64).requires_grad_()).sum()
    with torch.no_grad():
        model.layers[0].prompts.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_hooks_of_others_decide_what_is_saved() -> None:
    model, x = (
        kanmeta.convert(kan(3, 4).double(), execution="materialize"),
        torch.rand(5, 3).double(),
    )
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    kanmeta.set_execution(model, "regenerate")
    with save_on_cpu():
        y = model(x).sum()
    for ours, theirs in zip(
        torch.autograd.grad(y, list(model.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def copied(mix: bool) -> nn.Module:
    """A class of the library's name whose forward somebody changed."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y: Tensor = original(self, x - x.mean(0) if mix else x)
        return y

    original = efficient_kan.KANLinear.forward
    changed = type("KANLinear", (nn.Module,), {**vars(efficient_kan.KANLinear), "forward": forward})
    layer = changed.__new__(changed)
    layer.__dict__.update(efficient_kan.KANLinear(20, 30).double().__dict__)
    assert isinstance(layer, nn.Module)
    return layer


@pytest.mark.parametrize("mix", [True, False])
def test_a_copy_whose_forward_mixes_rows_is_not_streamed(mix: bool) -> None:
    layer, x = kanmeta.convert(copied(mix)), torch.rand(50, 20, dtype=torch.float64)
    expected = layer(x)
    kanmeta.set_execution(layer, "stream", budget=1)
    torch.testing.assert_close(layer(x), expected)
    ((_, binding),) = bindings(layer)
    assert mix is False or binding.independent[1] is False


def test_what_is_found_about_rows() -> None:
    x = torch.rand(5, 4)
    before = torch.get_rng_state()
    assert rows_are_independent(lambda x: (x.exp(), x.sum(1)), x, 0)
    assert rows_are_independent(lambda x: torch.dropout(x, 0.5, True), x, 0)  # nothing to compare
    assert not rows_are_independent(lambda x: x / x.abs().max(), x, 0)
    assert not rows_are_independent(lambda x: x.expand(5, 4) + 1 if len(x) > 1 else x, x, 0)
    assert rows_are_independent(lambda x: x - x.mean(0), x, 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("execution", ["materialize", "regenerate", "stream"])
def test_scaled_losses_and_accumulated_gradients(execution: str) -> None:
    """Two halves of a batch, scaled as mixed precision needs it, give the whole batch's step."""
    model, x = kanmeta.convert(kan(3, 4, 2).double()), torch.randn(6, 3, dtype=torch.float64)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    kanmeta.set_execution(model, execution, budget=3000)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for half in x.split(3):
        scaler.scale(model(half).square().sum()).backward()
    scaler.unscale_(optimizer)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
