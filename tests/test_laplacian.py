"""recipes.laplacian and the exact solution of recipes.pde, against automatic differentiation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipes.laplacian import spline_derivative, value_gradient_laplacian
from recipes.levenberg_marquardt import LevenbergMarquardt
from recipes.models import build
from recipes.reference.b_spline import adapted_grid, b_spline_basis
from recipes.unit_ball import Solution

PLAIN = {"enable_standalone_scale_spline": False, "bias": True}


def points(n: int, dims: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, dims, generator=generator, dtype=torch.float64) - 0.5


@pytest.mark.parametrize("convert", [None, {"hidden": 8}, {"hidden": 4, "dim_z": 2}])
@pytest.mark.parametrize("axes", [None, [3, 1]])
def test_value_gradient_and_laplacian(convert: Any, axes: list[int] | None) -> None:
    model = build("kan", (5, 4, 3, 2), PLAIN, convert, 0, torch.float64)
    x = points(6, 5)
    chosen = list(range(5)) if axes is None else axes
    value, gradient, laplacian = value_gradient_laplacian(
        model, x, None if axes is None else torch.tensor(axes)
    )
    assert torch.allclose(value, model(x))
    for n, point in enumerate(x):
        for o in range(2):

            def at(p: Tensor, o: int = o) -> Tensor:
                y: Tensor = model(p.unsqueeze(0))[0, o]
                return y

            slope = torch.autograd.functional.jacobian(at, point)[chosen]
            bend = torch.autograd.functional.hessian(at, point).diagonal()[chosen].sum()
            assert bend.abs() > 1e-4
            assert torch.allclose(gradient[n, :, o], slope)
            assert torch.allclose(laplacian[n, o], bend)


def test_gradients_reach_the_weights() -> None:
    model = build("kan", (3, 4, 1), PLAIN, {"hidden": 8}, 0, torch.float64)
    value_gradient_laplacian(model, points(6, 3))[2].square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None or name.endswith("bias"), name


def test_spline_derivatives_on_uneven_knots() -> None:
    x = points(40, 2)
    grid = adapted_grid(x, 4, 3, 0.5, 0.01)
    some = x[:9].clone().requires_grad_()
    basis = b_spline_basis(some, grid, 3)
    slopes = spline_derivative(some, grid, 3, 1)
    for k in range(basis.shape[1]):
        (exact,) = torch.autograd.grad(basis[:, k].sum(), some, retain_graph=True)
        assert torch.allclose(slopes[:, k], exact)
        (bend,) = torch.autograd.grad(slopes[:, k].sum(), some, retain_graph=True)
        assert torch.allclose(spline_derivative(some, grid, 3, 2)[:, k], bend)


def test_the_exact_solution() -> None:
    solution = Solution.of(5, dtype=torch.float64)
    x = points(7, 5)
    value, laplacian = solution(x)
    for n, point in enumerate(x):

        def at(p: Tensor) -> Tensor:
            return solution(p.unsqueeze(0))[0][0]

        assert torch.allclose(value[n], at(point))
        bend = torch.autograd.functional.hessian(at, point).diagonal().sum()
        assert torch.allclose(laplacian[n], bend)
    surface = torch.nn.functional.normalize(x)
    assert solution(surface)[0].abs().max() < 1e-12


def test_levenberg_marquardt_solves_a_linear_problem_in_one_step() -> None:
    net = nn.Linear(3, 1, dtype=torch.float64)
    x = points(20, 3)
    wanted = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.25

    def residuals(some: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = some(x)[:, 0]
        return y - x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) - 0.25

    optimizer = LevenbergMarquardt(net, residuals, damping=1e-12, chunk=7)
    before = optimizer.step(x)
    assert before > 0.01
    assert torch.allclose(net(x)[:, 0], wanted, atol=1e-8)


def test_levenberg_marquardt_takes_no_step_that_makes_it_worse() -> None:
    net = build("kan", (3, 4, 1), PLAIN, {"hidden": 4, "activation": "silu"}, 0, torch.float64)

    def residuals(some: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = 30 * some(x)[:, 0].tanh() - 1  # bent: undamped steps go too far
        return y

    x = points(40, 3)
    optimizer = LevenbergMarquardt(net, residuals, damping=1e-10)
    found = [optimizer.step(x) for _ in range(12)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 100
    assert optimizer.param_groups[0]["damping"] != 1e-10
