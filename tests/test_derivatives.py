"""Derivatives of the functions that adapters declare, and of the sum made of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kanmeta.basis import Known, elementwise, gaussians, splines
from kanmeta.derivatives import Planes


def knots(order: int, even: bool) -> Tensor:
    """Of 3 inputs, ``(3, T)``, from -1.3 to 1.7."""
    grid = torch.linspace(-1.3, 1.7, 7 + 2 * order, dtype=torch.float64).repeat(3, 1)
    if not even:
        grid += 0.1 * torch.rand(grid.shape, dtype=torch.float64)
        grid[1, order + 2] = grid[1, order + 3]  # a double knot
    return grid


def no_slope(x: Tensor) -> Tensor:
    return torch.ones_like(x)


FUNCTIONS: dict[str, Callable[[], Known]] = {
    "silu": lambda: elementwise(nn.SiLU()),
    "tanh": lambda: elementwise(torch.tanh),
    "relu": lambda: elementwise(torch.relu),
    "identity": lambda: elementwise(nn.Identity()),
    "constant": lambda: elementwise(no_slope),
    "gaussians": lambda: gaussians(torch.linspace(-2, 2, 6, dtype=torch.float64), 0.7),
}
for degree in (0, 1, 2, 3, 5):
    for kind in (True, False):
        FUNCTIONS[f"splines-{degree}-{'even' if kind else 'uneven'}"] = lambda d=degree, k=kind: (
            splines(knots(d, k), d)
        )


def naive(known: Known, x: Tensor, order: int) -> Tensor:
    """Derivative of every function by autograd, ``(rows, functions, inputs)``."""
    x = x.detach().requires_grad_()
    values = known.evaluate(x, slice(0, x.shape[1]))[0]
    found = []
    for k in range(values.shape[1]):
        y = values[:, k]
        for _ in range(order):
            if y.requires_grad:
                (y,) = torch.autograd.grad(y.sum(), x, create_graph=True, materialize_grads=True)
            else:
                y = torch.zeros_like(x)
        found.append(y.detach())
    return torch.stack(found, 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_every_order_are_those_of_autograd(name: str) -> None:
    torch.manual_seed(0)
    known = FUNCTIONS[name]()
    x = torch.randn(40, 3, dtype=torch.float64)
    x[0] = 50.0
    x[1] = -50.0
    expected = [naive(known, x, order) for order in range(5)]
    assert expected[0].any()
    number = expected[0].shape[1]
    point = known.derivatives.at(x, slice(0, 3))
    planes = Planes(40, number, 3, known.derivatives.pad, x)
    for order in range(5):
        weight = torch.randn_like(x)
        point.mix({order: weight}, planes)
        torch.testing.assert_close(planes.values, expected[order] * weight[:, None])
    point.mix({1: weight, 0: None, 4: weight, 2: None}, planes)
    total = (expected[1] + expected[4]) * weight[:, None] + expected[0] + expected[2]
    torch.testing.assert_close(planes.values, total)
    p = Planes(40, number, 3, known.derivatives.pad, x)
    p.values.copy_(torch.randn(p.values.shape, dtype=torch.float64))
    orders = [2, 0, 4, 1, 3]
    for order, found in zip(orders, point.contract(p, orders), strict=True):
        torch.testing.assert_close(found, (expected[order] * p.values).sum(1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_some_of_the_inputs(name: str) -> None:
    torch.manual_seed(0)
    known = FUNCTIONS[name]()
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = naive(known, x, 1)
    planes = Planes(5, expected.shape[1], 2, known.derivatives.pad, x)
    known.derivatives.at(x[:, 1:].contiguous(), slice(1, 3)).mix({1: None}, planes)
    torch.testing.assert_close(planes.values, expected[:, :, 1:])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_number_that_is_none_stays_alone(name: str) -> None:
    known = FUNCTIONS[name]()
    x = torch.tensor([[0.1, torch.nan, 0.2], [0.3, 1e30, -1e30]], dtype=torch.float64)
    number = naive(known, x, 0).shape[1]
    planes = Planes(2, number, 3, known.derivatives.pad, x)
    point = known.derivatives.at(x, slice(0, 3))
    point.mix({1: None}, planes)
    right = torch.isfinite(planes.values)
    assert right[:, :, ::2].all()
    planes.values.fill_(1)
    (found,) = point.contract(planes, [1])
    assert found[:, ::2].isfinite().all()


def test_memory_beside_the_functions_is_not_theirs() -> None:
    planes = Planes(4, 3, 2, 5, torch.zeros(1))
    planes.values.fill_(1)
    assert planes.flat.sum() == planes.values.numel() == planes.matrix.sum()
    assert planes.matrix.shape == (4, 6)
