"""Streaming under transforms of functions, in a compiled model, and with leading dimensions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

import kanmeta
from kanmeta.errors import ExecutionError
from kanmeta.surgery import bindings
from recipes.reference import fast_kan, fc_poly
from tests.cases import case, kan
from tests.execution_help import assert_same, derivatives, modes

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


@pytest.mark.parametrize("name", ["efficient-kan-no-scaler", "kan-conv-2d-g2-tap", "pykan"])
@pytest.mark.parametrize("execution", ["regenerate", "stream"])
def test_gradients_of_parameters_by_torch_func(name: str, execution: str) -> None:
    """With respect to prompts and the meta-learner that layers share; the model stays as it is."""
    c = case(name)
    model, x = c.convert(c.model(), execution="materialize"), c.x()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    weights = torch.linspace(-1, 2, c.run(model, x).numel(), dtype=x.dtype)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return (c.output(functional_call(model, parameters, (x,))).flatten() * weights).sum()

    expected = torch.autograd.grad(loss(named), list(named.values()), allow_unused=True)
    kanmeta.set_execution(model, execution, budget=3000)
    found = grad(loss)({n: p.detach() for n, p in named.items()})
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, ours * 0 if theirs is None else theirs)
    assert all(p is dict(model.named_parameters())[n] for n, p in named.items())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_of_one_streamed_layer(reentrant: bool) -> None:
    model = kanmeta.convert(kan(3, 4, 2).double(), execution="materialize")
    x = torch.randn(6, 3, dtype=torch.float64)
    first, second = model.layers

    def loss(x: Tensor) -> list[Any]:
        leaf = x.clone().requires_grad_()
        model.zero_grad()
        y = checkpoint(second, checkpoint(first, leaf, use_reentrant=reentrant), use_reentrant=True)
        y.square().sum().backward()
        return [y.detach(), leaf.grad, *[p.grad.clone() for p in model.parameters()]]

    expected = loss(x)
    for execution, budget in modes(model):
        kanmeta.set_execution(model, execution, budget=budget)
        assert_same(loss(x), expected)


@pytest.mark.parametrize("shape", [(2, 3), (1, 5), (3, 1, 2), (2, 0)])
def test_leading_dimensions_of_a_layer_in_blocks_of_rows(shape: tuple[int, ...]) -> None:
    """Tiles have theirs in test_execution_tiles; here the library's own forward runs."""

    class FastKANLayer(fast_kan.FastKANLayer):
        def forward(self, x: Tensor, use_layernorm: bool = True) -> Tensor:
            return super().forward(x, use_layernorm).square()  # not what the adapter declares

    model = nn.Sequential(FastKANLayer(4, 5), FastKANLayer(5, 3)).double()
    kanmeta.convert(model, execution="materialize")
    x = torch.rand(*shape, 4, dtype=torch.float64)
    expected = derivatives(model, x, model)
    for execution, budget in modes(model):
        kanmeta.set_execution(model, execution, budget=budget)
        assert_same(derivatives(model, x, model), expected)
    assert not any(binding.compared[1] for _, binding in bindings(model))


class ChebyKANLayer(fc_poly.ChebyKANLayer):
    """As the library's: it makes one dimension of all that are not inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, self.inputdim))


def test_leading_dimensions_that_a_library_joins() -> None:
    model = kanmeta.convert(ChebyKANLayer(4, 3, 2).double(), execution="materialize")
    for shape in ((6,), (2, 5), (3, 1, 2)):  # a layer that was tried with rows before
        x = torch.rand(*shape, 4, dtype=torch.float64)
        kanmeta.set_execution(model, "materialize")
        expected = derivatives(model, x, model)
        for execution, budget in modes(model):
            kanmeta.set_execution(model, execution, budget=budget)
            assert_same(derivatives(model, x, model), expected)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_one_compiled_layer_among_streamed_ones() -> None:
    model = kanmeta.convert(kan(3, 4, 2).double(), execution="materialize")
    x = torch.randn(6, 3, dtype=torch.float64)
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=3000)
    model.layers[0].compile(backend="aot_eager")
    assert_same(derivatives(model, x, model), expected)
    torch.compiler.reset()


BATCHED = ["efficient-kan-no-scaler", "fast-kan-base-norm", "torch-conv-kan-gram", "pykan"]


@pytest.mark.parametrize("name", [*BATCHED, "kan-conv-2d-g2-tap", "kagn-conv-2d-g2-tap"])
def test_many_gradients_at_once(name: str) -> None:
    """``is_grads_batched``, as ``jacobian(vectorize=True)`` uses it; of inputs and parameters."""
    c = case(name)
    model, x = c.convert(c.model(), execution="materialize"), c.x().requires_grad_()
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 2, 3 * c.run(model, x).numel(), dtype=x.dtype).view(3, -1)
    options = {"retain_graph": True, "allow_unused": True}
    one_by_one = [
        torch.autograd.grad(c.run(model, x).flatten(), wanted, each, **options) for each in weights
    ]
    expected = [None if g[0] is None else torch.stack(g) for g in zip(*one_by_one, strict=True)]
    for execution, budget in modes(model):
        kanmeta.set_execution(model, execution, budget=budget)
        y = c.run(model, x).flatten()
        found = torch.autograd.grad(y, wanted, weights, is_grads_batched=True, **options)
        assert_same([y.detach(), *found], [y.detach(), *expected])


def test_many_second_derivatives_at_once_say_what_to_do() -> None:
    model = kanmeta.convert(kan(3, 4, 2).double(), execution="stream", activation="tanh")
    x = torch.randn(5, 3, dtype=torch.float64)

    def hessian() -> Tensor:
        def loss(x: Tensor) -> Tensor:
            return model(x).square().sum()

        found = torch.autograd.functional.hessian(loss, x, vectorize=True)
        assert isinstance(found, Tensor)
        return found

    with pytest.raises(ExecutionError, match="or ask for one gradient at a time") as error:
        hessian()
    assert "is_grads_batched" in str(error.value)
    streamed = torch.autograd.functional.hessian(lambda x: model(x).square().sum(), x)
    kanmeta.set_execution(model, "materialize")  # the error's advice
    torch.testing.assert_close(hessian(), streamed)
