"""Layers whose basis an adapter declares run in tiles, if they compute what it says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.basis import Basis
from kanmeta.registry import all_adapters
from kanmeta.surgery import bindings
from recipes.reference import efficient_kan, fast_kan
from tests.case import Case
from tests.cases import CASES, kan
from tests.execution_help import SMALL, assert_same, derivatives

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


DECLARED = {adapter.name: adapter.basis for adapter in all_adapters()}
TILED = [c for c in CASES if c.available and isinstance(DECLARED.get(c.adapter), Basis)]


@pytest.mark.parametrize("case", TILED, ids=lambda c: c.name)
@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 8},
        {"hidden": 8, "bias": False},
        {"hidden": 2},
        {"hidden": 3, "dim_z": 2, "activation": "gelu"},
        {"hidden": 8, "dim_z": 2, "activation": "silu"},
        {"activation": "identity"},
        {"activation": "identity", "dim_z": 2, "bias": False},
    ],
    ids=lambda o: "-".join(f"{k}{v}" for k, v in o.items()),
)
def test_tiles_of_known_bases(case: Case, options: dict[str, Any]) -> None:
    """Every way to write the sum, with leading dimensions where the library has them."""
    model = case.convert(case.model(), execution="materialize", **options)
    leading = all(b.spec.leading for _, b in bindings(model))
    for shape in ((7,), (2, 1, 5)) if leading else ((7,),):
        x = torch.randn(*shape, 4, dtype=torch.float64)
        expected = derivatives(lambda x: case.run(model, x), x, model)
        for budget in (SMALL, 9000, None):
            kanmeta.set_execution(model, "stream", budget=budget)
            assert_same(derivatives(lambda x: case.run(model, x), x, model), expected)
        assert all(b.compared[1] for _, b in bindings(model))
        kanmeta.set_execution(model, "materialize")


@pytest.mark.parametrize("grid_size", [3, 40])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_splines_of_any_degree_on_any_grid(order: int, grid_size: int) -> None:
    layer = efficient_kan.KANLinear(3, 4, grid_size=grid_size, spline_order=max(order, 1))
    if order == 0:
        layer.spline_order, layer.grid = 0, layer.grid[:, 1:-1].contiguous()
        layer.spline_weight = nn.Parameter(torch.randn(4, 3, grid_size))
    layer.double()
    layer.grid.copy_(torch.sort(torch.randn_like(layer.grid)).values)
    model = kanmeta.convert(layer, execution="materialize", activation="tanh")
    x = torch.randn(30, 3, dtype=torch.float64) * 2
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=5000)
    assert_same(derivatives(model, x, model), expected)
    assert model._kanmeta.compared[1]


def test_a_prompt_on_a_kink_has_the_gradient_of_relu_there() -> None:
    model = kanmeta.convert(kan(3, 4, 2).double(), execution="materialize", hidden=5)
    with torch.no_grad():
        for z in kanmeta.prompts(model).values():
            z[0] = 0
        for meta in kanmeta.meta_learners(model).values():
            meta.bias1.zero_()  # all kinks at 0
            meta.weight1[0] = 0
            meta.bias1[0] = 0.5  # always on
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = derivatives(model, x, model)
    for execution in ("regenerate", "stream"):
        kanmeta.set_execution(model, execution)
        assert_same(derivatives(model, x, model), expected)


def grid_updated() -> tuple[nn.Module, Tensor]:
    model = kanmeta.convert(kan(3, 4, 2).double(), execution="materialize")
    x = torch.randn(40, 3, dtype=torch.float64)
    model(x, update_grid=True)
    return model, x


def test_maps_of_grid_updates_come_after_the_meta_learner() -> None:
    model, x = grid_updated()
    assert all(b.map is not None for _, b in bindings(model))
    expected = derivatives(model, x, model)
    for execution in ("regenerate", "stream"):
        kanmeta.set_execution(model, execution, budget=2000)
        assert_same(derivatives(model, x, model), expected)


def test_a_layer_that_computes_something_else_is_not_tiled() -> None:
    class FastKANLayer(fast_kan.FastKANLayer):
        def forward(self, x: Tensor, use_layernorm: bool = True) -> Tensor:
            return super().forward(x, use_layernorm).square()

    model = nn.Sequential(FastKANLayer(4, 5), fast_kan.FastKANLayer(5, 3)).double()
    kanmeta.convert(model, execution="materialize")
    x = torch.rand(6, 4, dtype=torch.float64)
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=3000)
    assert_same(derivatives(model, x, model), expected)
    assert [b.compared[1] for _, b in bindings(model)] == [False, True]
    model[1].base_activation = torch.tanh  # a new state is compared anew
    kanmeta.set_execution(model, "materialize")
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream")
    assert_same(derivatives(model, x, model), expected)
    # arguments of a call that the basis does not describe
    layer = model[1]
    stream = layer(torch.ones(2, 5, dtype=torch.float64), use_layernorm=False)
    kanmeta.set_execution(model, "materialize")
    whole = layer(torch.ones(2, 5, dtype=torch.float64), use_layernorm=False)
    torch.testing.assert_close(stream, whole)
