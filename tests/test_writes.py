"""Generated tensors are read like Parameters, and no write to one is lost, for every row."""

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import CoefficientWriteError
from kanmeta.spec import tensor_at
from tests.cases import Case, each_case


@each_case
def test_generated_tensors_can_be_read_like_parameters(case: Case) -> None:
    model = case.model()
    planned = kanmeta.plan(model, adapters=case.adapters, edge=case.edge)
    spec = planned.layers[0].spec
    layer = model.get_submodule(case.layers[0])
    shapes = {path: tensor_at(layer, path).shape for path in spec.paths}
    case.convert(model)
    for path, shape in shapes.items():
        tensor = tensor_at(layer, path)
        assert tensor.shape == shape
        assert tensor.dtype == torch.float64
        assert tensor.is_contiguous()
    total = sum(tensor_at(layer, slot.paths[0]).sum() for slot in spec.slots)
    assert isinstance(total, Tensor)
    total.backward()
    assert kanmeta.prompts(model)[case.layers[0]].grad.abs().sum() > 0
    with torch.no_grad():
        w = kanmeta.coefficients(model)[case.layers[0]]
    assert w.shape == (*spec.edge_shape, spec.dim_w)
    torch.testing.assert_close(
        spec.split(w)[spec.slots[-1].paths[0]], tensor_at(layer, spec.slots[-1].paths[0]).detach()
    )


WRITES = {
    "data.copy_": lambda owner, name: getattr(owner, name).data.copy_(0 * getattr(owner, name)),
    "data =": lambda owner, name: setattr(getattr(owner, name), "data", torch.zeros(1)),
    "nn.init": lambda owner, name: nn.init.zeros_(getattr(owner, name)),
    "kaiming": lambda owner, name: nn.init.kaiming_uniform_(getattr(owner, name)),
    "index": lambda owner, name: getattr(owner, name).__setitem__(0, 1.0),
    "view": lambda owner, name: getattr(owner, name).detach().view(-1)[:2].zero_(),
    "mul_": lambda owner, name: getattr(owner, name).mul_(2),
    "out=": lambda owner, name: torch.zeros(1, out=getattr(owner, name)),
    "foreach": lambda owner, name: torch._foreach_mul_([getattr(owner, name)], 2.0),
    "assign": lambda owner, name: setattr(owner, name, nn.Parameter(torch.zeros(1))),
    "assign None": lambda owner, name: setattr(owner, name, None),
    "delete": delattr,
    "requires_grad": lambda owner, name: getattr(owner, name).requires_grad_(False),
    "buffer": lambda owner, name: owner.register_buffer(name, torch.zeros(1)),
    "register": lambda owner, name: owner.register_parameter(name, nn.Parameter(torch.zeros(1))),
}


@each_case
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("grad", [True, False])
def test_no_write_is_lost(case: Case, write: str, grad: bool) -> None:
    model, x = case.model(), case.x()
    case.convert(model)
    spec = kanmeta.plan(case.model(), adapters=case.adapters, edge=case.edge).layers[0].spec
    layer = model.get_submodule(case.layers[0])
    expected = case.run(model, x)
    for path in spec.paths:
        owner, _, name = path.rpartition(".")
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(CoefficientWriteError, match="materialize"),
        ):
            WRITES[write](layer.get_submodule(owner), name)
    assert torch.equal(case.run(model, x), expected)


@each_case
def test_vanilla_checkpoint_is_refused_and_the_advice_helps(case: Case) -> None:
    model, other, x = case.model(), case.model(seed=7), case.x()
    case.convert(model)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"kanmeta\.materialize"):
            model.load_state_dict(other.state_dict(), strict=strict)
    kanmeta.materialize(model).load_state_dict(other.state_dict())
    assert torch.equal(case.run(model, x), case.run(other, x))
