"""Derivatives of derivatives, in every mode, for every row."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from tests.case import Case
from tests.cases import each_case
from tests.execution_help import assert_same, modes, trained

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


def pde(case: Case, model: nn.Module, x: Tensor) -> list[Any]:
    """Gradients of a loss of first and second derivatives with respect to the input."""
    x = x.detach().requires_grad_()
    y = case.run(model, x).square()
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), x, create_graph=True)
    loss = (second + 0.3 * first).square().sum() + y.sum()
    found = torch.autograd.grad(loss, [x, *trained(model)], allow_unused=True)
    return [loss.detach(), second.detach(), *found]


@each_case
def test_third_derivatives(case: Case) -> None:
    model = case.convert(case.model(), execution="materialize", activation="tanh")
    x = case.x(3)
    try:
        expected = pde(case, model, x)
    except RuntimeError as error:
        pytest.skip(f"the library itself cannot: {error}")
    for execution, budget in modes(model):
        kanmeta.set_execution(model, execution, budget=budget)
        assert_same(pde(case, model, x), expected, 1e-9)


@each_case
def test_second_derivatives_of_parameters(case: Case) -> None:
    """As meta-learning and sharpness-aware methods need them."""
    model, x = case.convert(case.model(), execution="materialize", activation="silu"), case.x(3)

    def found() -> list[Any]:
        parameters = trained(model)
        y = case.run(model, x).square().sum()
        first = torch.autograd.grad(y, parameters, create_graph=True, allow_unused=True)
        size = torch.stack([g.square().sum() for g in first if g is not None]).sum()
        return [size.detach(), *torch.autograd.grad(size, parameters, allow_unused=True)]

    try:
        expected = found()
    except RuntimeError as error:
        pytest.skip(f"the library itself cannot: {error}")
    for execution, budget in modes(model):
        kanmeta.set_execution(model, execution, budget=budget)
        assert_same(found(), expected, 1e-8)
