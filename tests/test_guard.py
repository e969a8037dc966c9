"""Generated tensors: reads give what a tensor gives, copies are free, writes are refused."""

import copy
import io

import pytest
import torch
from torch import Tensor

from kanmeta.errors import CoefficientWriteError
from kanmeta.guard import GeneratedTensor


def guarded(requires_grad: bool = False) -> Tensor:
    base = torch.arange(6.0).reshape(2, 3)
    if requires_grad:
        base = base.requires_grad_() * 1
    return GeneratedTensor.wrap(base, "layer.coef")


def test_results_are_plain_and_views_are_guarded() -> None:
    t = guarded()
    for result in (t + 1, t.clone(), torch.stack([t, t]), t.sum(), t @ t.T, t.to(torch.float64)):
        assert type(result) is Tensor
    for view in (t.data, t.detach(), t[0], t.T, t.view(-1), t.reshape(3, 2), t.to(t.dtype)):
        assert type(view) is GeneratedTensor
    assert all(type(part) is GeneratedTensor for part in t.unbind())
    assert t.shape == (2, 3)
    assert t.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert "coef" not in repr(t)
    t.clone().zero_()  # a copy may be written to
    torch.zeros(2, 3).copy_(t).add_(t)  # and a guarded tensor may be read by a write elsewhere


def test_copies_and_pickles_are_plain() -> None:
    t = guarded()
    buffer = io.BytesIO()
    torch.save(t, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(t), torch.load(buffer)):
        assert type(twin) is Tensor
        assert torch.equal(twin, t)
    assert copy.deepcopy([t])[0].data_ptr() != t.data_ptr()


def test_numpy_views_are_read_only() -> None:
    array = guarded().numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_gradients_pass_through() -> None:
    base = torch.ones(3, requires_grad=True)
    (GeneratedTensor.wrap(base * 2, "x")[1:] * 5).sum().backward()
    assert base.grad is not None
    assert base.grad.tolist() == [0, 10, 10]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_the_error_names_the_tensor_the_function_and_the_remedy(requires_grad: bool) -> None:
    t = guarded(requires_grad)
    with pytest.raises(CoefficientWriteError) as raised:
        torch.nn.init.normal_(t)
    for text in ("normal_", "'layer.coef'", "kanmeta.prompts", "kanmeta.materialize"):
        assert text in str(raised.value)
    with pytest.raises(CoefficientWriteError):
        t += 1
    with pytest.raises(CoefficientWriteError):
        torch.nn.init.uniform_(tensor=t)
    with pytest.raises(CoefficientWriteError, match=r"\.grad ="):
        t.grad = torch.zeros(2, 3)
    with pytest.raises(CoefficientWriteError):
        torch.nn.functional.relu(t.detach(), inplace=True)
    with pytest.raises(CoefficientWriteError):
        torch.add(t, t, out=t)
