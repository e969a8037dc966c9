"""Layouts hold for layers of any size, number of groups and dimension of the image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import kanmeta
from tests.case import Case
from tests.cases import CASES
from tests.test_contract import as_identity, one_edge_is_one_pair

SIZED = [case for case in CASES if case.layer is not None]


@st.composite
def sizes(draw: st.DrawFn, case: Case) -> tuple[int, int, int, int]:
    """(inputs, outputs, groups, dimensions of the image)."""
    groups = draw(st.integers(1, 3)) if case.groups else 1
    inputs, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    return inputs, outputs, groups, draw(st.sampled_from(case.ndims))


@pytest.mark.parametrize("case", SIZED, ids=lambda c: c.name)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.data())
def test_any_size(case: Case, data: st.DataObject) -> None:
    inputs, outputs, groups, ndim = data.draw(sizes(case))
    assert case.layer is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(case.layer(inputs, outputs, groups, ndim)).double()
    image = (4, 3, 3)[:ndim]
    x = torch.rand(3, inputs, *image, dtype=torch.float64) * 1.8 - 0.9
    expected = case.output(model(x))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    as_identity(case, model)
    torch.testing.assert_close(case.output(model(x)), expected, rtol=0, atol=1e-12)
    kanmeta.materialize(model)
    torch.testing.assert_close(case.output(model(x)), expected, rtol=0, atol=1e-12)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in state.items()
    }
    as_identity(case, model)
    one_edge_is_one_pair(case, model[0], image)
