"""The metric in which coefficients are compared: by what they do at the inputs of their layer."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from kanmeta import edge_functions
from kanmeta.access import complete_layers
from kanmeta.layer_metric import Call, first_tensor, gram, standard_call
from kanmeta.spec import LayerSpec
from tests.cases import CASES, Case

LINEAR = [c for c in CASES if c.name.startswith(("efficient-kan", "fast-kan"))]


@pytest.mark.parametrize("c", LINEAR, ids=lambda c: c.name)
def test_known_functions_are_those_of_the_layer(c: Case) -> None:
    """One coefficient is 1, all others 0: the output is its function."""
    model = c.model(torch.float64).eval()
    for name, binding in complete_layers(c.convert(c.model(torch.float64))).items():
        _check_functions(model.get_submodule(name), binding.spec)


@torch.no_grad()
def _check_functions(layer: nn.Module, spec: LayerSpec) -> None:
    x = torch.randn(7, spec.sizes["i"], dtype=torch.float64)
    values = list(edge_functions.functions(layer, spec, [Call((x,), {}, layer(x))]))
    none = torch.zeros(*spec.edge_shape, spec.dim_w, dtype=torch.float64)

    def output(w: Tensor) -> Tensor:
        return first_tensor(functional_call(layer, dict(spec.split(w)), (x,)))

    for i, k in itertools.product(range(spec.sizes["i"]), range(spec.dim_w)):
        w = none.clone()
        w.movedim([spec.edge_axes.index(a) for a in "oi"], [0, 1])[0, i, k] = 1
        torch.testing.assert_close(values[i][k], (output(w) - output(none))[:, 0])


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
@torch.no_grad()
def test_both_ways_give_the_same_metric(c: Case) -> None:
    """Up to the signs of :func:`gram`, which cancel on average, and zeros around images."""
    model = c.model(torch.float64).eval()
    name, binding = next(iter(complete_layers(c.convert(c.model(torch.float64))).items()))
    layer, spec = model.get_submodule(name), binding.spec
    call = standard_call(layer, spec, torch.Generator().manual_seed(0))
    known = None if call is None else edge_functions.gram(layer, spec, [call])
    if call is None or known is None:
        return
    drawn = [gram(layer, spec, [call], torch.Generator().manual_seed(s)) for s in range(40)]
    if drawn[0] is None:
        return  # a norm after the sums
    mean = torch.stack([g / g.trace() for g in drawn if g is not None]).mean(0)
    assert (known / known.trace() - mean).norm() < 0.2 * mean.norm()


@pytest.mark.parametrize("name", ["torch-conv-kan-spline", "torch-conv-kan-gram"])
def test_a_norm_after_the_sum_hides_no_metric(name: str) -> None:
    c = next(c for c in CASES if c.name == name)
    model = c.model(torch.float32).eval()
    for path, binding in complete_layers(c.convert(c.model(torch.float32))).items():
        layer = model.get_submodule(path)
        call = standard_call(layer, binding.spec, torch.Generator().manual_seed(0))
        assert call is not None
        assert gram(layer, binding.spec, [call], None) is None
        assert edge_functions.gram(layer, binding.spec, [call]) is not None
        by_name = Call((), {"x": call.args[0]}, call.output)
        assert edge_functions.gram(layer, binding.spec, [by_name]) is None
