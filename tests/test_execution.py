"""All modes of execution compute the same function and the same gradients, for every row."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import kanmeta
from tests.case import Case
from tests.cases import each_case
from tests.execution_help import assert_same, derivatives, modes, streams
from tests.test_contract_sizes import SIZED, sizes

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


@each_case
@pytest.mark.filterwarnings("ignore:std")  # pykan's own statistics of a single row
def test_every_mode_has_the_same_values_and_gradients(case: Case) -> None:
    model = case.convert(case.model(), execution="materialize")
    for n in (6, 1):
        x = case.x(n)
        expected = derivatives(lambda x: case.run(model, x), x, model)
        for execution, budget in modes(model):
            kanmeta.set_execution(model, execution, budget=budget)
            found = derivatives(lambda x: case.run(model, x), x, model)
            assert_same(found, expected)
            again = derivatives(lambda x: case.run(model, x), x, model)
            assert all(a is b or torch.equal(a, b) for a, b in zip(found, again, strict=True))
        kanmeta.set_execution(model, "materialize")


@each_case
def test_inputs_that_are_not_contiguous(case: Case) -> None:
    model = case.convert(case.model(), execution="materialize")
    wide = torch.stack([case.x(12), case.x(12, seed=3)], dim=-1)
    x = wide[::2, ..., 1]
    assert not x.is_contiguous()
    expected = derivatives(lambda x: case.run(model, x), x, model)
    for execution, budget in modes(model):
        kanmeta.set_execution(model, execution, budget=budget)
        assert_same(derivatives(lambda x: case.run(model, x), x, model), expected)


@each_case
def test_no_rows(case: Case) -> None:
    model, x = case.convert(case.model(), execution="materialize"), case.x(0)
    try:
        expected = derivatives(lambda x: case.run(model, x), x, model)
    except Exception as error:
        pytest.skip(f"the library itself cannot: {type(error).__name__}")
    for execution, budget in modes(model):
        kanmeta.set_execution(model, execution, budget=budget)
        found = derivatives(lambda x: case.run(model, x), x, model)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours is theirs is None or ours.shape == theirs.shape
            assert ours is None or not ours.any()


@pytest.mark.parametrize("case", SIZED, ids=lambda c: c.name)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.data())
def test_any_size(case: Case, data: st.DataObject) -> None:
    inputs, outputs, groups, ndim = data.draw(sizes(case))
    options = {
        "hidden": data.draw(st.integers(1, 12)),
        "dim_z": data.draw(st.integers(1, 2)),
        "activation": data.draw(st.sampled_from(["relu", "tanh", "gelu", "silu", "identity"])),
        "bias": data.draw(st.booleans()),
    }
    budget = data.draw(st.sampled_from([1, 500, 5000, 50_000]))
    assert case.layer is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(case.layer(inputs, outputs, groups, ndim)).double()
    case.convert(model, execution="materialize", **options)
    x = torch.rand(data.draw(st.integers(1, 7)), inputs, *(4, 3, 3)[:ndim], dtype=torch.float64)
    expected = derivatives(lambda x: case.output(model(x)), x, model)
    assume(bool(expected[0].isfinite().all()))  # Legendre layers divide by the range of one number
    for execution in ("regenerate", "stream") if streams(model) else ("regenerate",):
        kanmeta.set_execution(model, execution, budget=budget)
        assert_same(derivatives(lambda x: case.output(model(x)), x, model), expected)
