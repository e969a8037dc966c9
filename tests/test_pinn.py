"""Networks whose loss holds derivatives of their outputs, as physics-informed ones do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import closed, edges
from kanmeta.surgery import bindings
from recipes.reference import efficient_kan, fast_kan
from recipes.tracking import peak_bytes
from tests.execution_help import assert_same, trained

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")

NETS: dict[str, Callable[[], nn.Module]] = {
    "efficient-kan": lambda: efficient_kan.KAN([2, 5, 4, 1]),
    "fast-kan": lambda: fast_kan.FastKAN([2, 5, 4, 1]),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {"activation": "relu"},
    {"activation": "silu", "dim_z": 3},
    {"activation": "tanh"},
    {"activation": "identity"},
    {"activation": "tanh", "bias": False, "dim_z": 3},
)


def net(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return kanmeta.convert(NETS[name]().double(), execution="materialize", hidden=6, **options)


def points(number: int = 7) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(number, 2, dtype=torch.float64) * 2 - 1).requires_grad_()


def gradient(y: Tensor, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return found


def laplacian(slope: Tensor, x: Tensor) -> Tensor:
    return torch.stack([gradient(slope[:, i], x)[:, i] for i in range(x.shape[1])]).sum(0)


def terms(model: nn.Module, x: Tensor) -> list[Tensor]:
    """u, its gradient, its Laplacian, and a derivative of that."""
    u = model(x)
    slope = gradient(u, x)
    curved = laplacian(slope, x)
    return [u, slope, curved, gradient(curved.sin(), x)]


def loss_of(parts: list[Tensor]) -> Tensor:
    u, slope, curved, third = parts
    return (curved - 1 + u[:, 0] * slope[:, 0]).square().sum() + third.square().sum()


def everything(model: nn.Module, x: Tensor) -> list[Any]:
    parts = terms(model, x)
    targets = [x, *trained(model)]
    found = torch.autograd.grad(loss_of(parts), targets, allow_unused=True)
    return [*(p.detach() for p in parts), *found]


def streamed(model: nn.Module, budget: int | None) -> nn.Module:
    kanmeta.set_execution(model, "stream", budget=budget)
    return model


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
@pytest.mark.parametrize("name", NETS)
def test_derivatives_up_to_the_fourth(name: str, options: dict[str, Any]) -> None:
    model, x = net(name, **options), points()
    expected = everything(model, x)
    assert all(t.abs().max() > 1e-6 for t in expected[:4])
    for execution, budget in (("stream", 1), ("stream", None), ("regenerate", None)):
        kanmeta.set_execution(model, execution, budget=budget)
        found = everything(model, x)
        for ours, theirs in zip(found[:4], expected[:4], strict=True):
            assert (ours - theirs).norm() <= 1e-10 * theirs.norm()
        assert_same(found, expected, 1e-10)
        if execution == "stream":
            assert all(b.compared[1] for _, b in bindings(model))


def test_rows_inputs_and_outputs_in_many_tiles() -> None:
    torch.manual_seed(0)
    model = kanmeta.convert(efficient_kan.KAN([3, 37, 29, 2]).double(), execution="materialize")
    x = torch.randn(150, 3, dtype=torch.float64).requires_grad_()

    def found() -> list[Any]:
        slope = gradient(model(x), x)
        loss = laplacian(slope, x).square().sum() + slope.square().sum()
        return [slope.detach(), *torch.autograd.grad(loss, [x, *trained(model)])]

    expected = found()
    for budget in (20_000, 500_000):
        streamed(model, budget)
        assert_same(found(), expected, 1e-10)


def test_knots_that_are_not_even_and_other_degrees() -> None:
    for order in (2, 4):
        layer = efficient_kan.KANLinear(2, 3, grid_size=4, spline_order=order).double()
        layer.grid += 0.05 * torch.rand_like(layer.grid)
        model, x = kanmeta.convert(layer, execution="materialize", activation="tanh"), points()

        def found(model: nn.Module = model, x: Tensor = x) -> list[Any]:
            loss = laplacian(gradient(model(x).square(), x), x).square().sum()
            return [loss.detach(), *torch.autograd.grad(loss, [x, *trained(model)])]

        expected = found()
        streamed(model, None)
        assert_same(found(), expected, 1e-10)


@pytest.mark.parametrize("name", NETS)
def test_hessian(name: str) -> None:
    model, x = net(name, activation="tanh"), points(3).detach()

    def f(x: Tensor) -> Tensor:
        y: Tensor = (model(x) * 100).sin().sum()
        return y

    expected = torch.autograd.functional.hessian(f, x)
    assert expected.abs().max() > 1e-3
    streamed(model, None)
    torch.testing.assert_close(torch.autograd.functional.hessian(f, x), expected)
    direction = torch.ones_like(x)
    product = torch.autograd.functional.hvp(f, x, direction)[1]
    torch.testing.assert_close(product, expected.sum((2, 3)))


@pytest.mark.parametrize("name", NETS)
def test_some_gradients_only(name: str) -> None:
    model, x = net(name, activation="tanh"), points()
    prompts = [*kanmeta.prompts(model).values()]
    learned = [p for m in kanmeta.meta_learners(model).values() for p in m.parameters()]

    def found() -> list[Any]:
        results: list[Any] = []
        for targets in ([x], prompts[:1], prompts, learned[-1:], [x, prompts[-1]]):
            parts = terms(model, x)
            results += torch.autograd.grad(loss_of(parts), targets)
        return results

    expected = found()
    streamed(model, None)
    assert_same(found(), expected, 1e-10)
    for frozen in (prompts, learned):
        for p in frozen:
            p.requires_grad_(False)
        kanmeta.set_execution(model, "materialize")
        expected = everything(model, x)
        streamed(model, None)
        assert_same(everything(model, x), expected, 1e-10)


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_gradients_of_parameters(name: str) -> None:
    """How gradients of parameters change with the points, the parameters and the targets."""
    model, x = net(name, activation="silu", dim_z=2), points()
    target = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None].requires_grad_()

    def found() -> list[Any]:
        y = model(x)
        loss = (y * target).sum() + gradient(y, x).square().sum()
        each = torch.autograd.grad(loss, trained(model), create_graph=True, allow_unused=True)
        size = torch.stack([g.square().sum() for g in each if g is not None]).sum()
        targets = [x, target, *trained(model)]
        return [size.detach(), *torch.autograd.grad(size, targets, allow_unused=True)]

    expected = found()
    assert all(g.abs().max() > 1e-6 for g in expected[:3])
    streamed(model, None)
    assert_same(found(), expected, 1e-9)


def test_inner_derivatives_do_not_compute_those_of_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = streamed(net("efficient-kan"), None), points()
    model(x)  # compares the basis with the library's
    pulled: list[int] = []
    original = edges.Generated.pull

    def pull(self: edges.Generated, columns: slice, gw: Tensor) -> None:
        pulled.append(1)
        original(self, columns, gw)

    monkeypatch.setattr(edges.Generated, "pull", pull)
    monkeypatch.setattr(closed, "_learned", None)  # would fail
    parts = terms(model, x)
    assert not pulled
    loss_of(parts).backward()
    assert pulled
    assert all(p.grad is not None for p in trained(model))


def step(model: nn.Module, x: Tensor) -> Tensor:
    return (laplacian(gradient(model(x), x), x) - 1).square().sum()


def test_training_is_the_same_in_all_modes() -> None:
    found = []
    for execution in ("materialize", "regenerate", "stream"):
        model = kanmeta.set_execution(net("efficient-kan", activation="tanh"), execution)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            for half in points(8).detach().split(4):  # gradients add up
                loss = step(model, half.requires_grad_())
                loss.backward()
                losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
        found.append(torch.stack(losses))
    assert found[0][-1] < found[0][1]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_gradients_of_two_halves_add_up_to_those_of_all_points() -> None:
    model, x = streamed(net("efficient-kan"), None), points(8).detach()
    expected = torch.autograd.grad(step(model, x.clone().requires_grad_()), trained(model))
    for half in x.split(4):
        step(model, half.requires_grad_()).backward()
    for p, g in zip(trained(model), expected, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_neither_bases_nor_coefficients_live_between_derivatives() -> None:
    peaks = {}
    x = torch.rand(400, 2).requires_grad_()
    for execution in ("materialize", "stream"):
        model = kanmeta.convert(efficient_kan.KAN([2, 32, 32, 1]), execution=execution, hidden=4)
        step(model, x)
        alive = [x, *model.parameters(), *model.buffers()]
        peaks[execution] = peak_bytes(lambda m=model: step(m, x).backward(), alive)
    assert peaks["stream"] < peaks["materialize"] / 10
