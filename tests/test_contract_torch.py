"""What torch offers keeps working on converted layers, for every row of the case table."""

import copy
import io

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import kanmeta
from kanmeta.spec import tensor_at
from tests.cases import Case, each_case


@each_case
def test_deepcopy_shares_inside_and_not_across(case: Case) -> None:
    model, x = case.model(), case.x()
    case.convert(model)
    twin = copy.deepcopy(model)
    assert torch.equal(case.run(twin, x), case.run(model, x))
    (ours,), (theirs,) = kanmeta.meta_learners(model).values(), kanmeta.meta_learners(twin).values()
    assert ours is not theirs
    assert {id(p) for p in model.parameters()}.isdisjoint({id(p) for p in twin.parameters()})
    expected = case.run(model, x).detach().clone()
    with torch.no_grad():
        theirs.weight2.mul_(2)
        assert torch.equal(case.run(model, x), expected)
        alone = case.run(twin, x)
        for name in case.layers:  # both layers of the copy follow its own meta-learner
            w = kanmeta.coefficients(twin)[name]
            assert not torch.allclose(w, kanmeta.coefficients(model)[name])
    assert not torch.allclose(alone, expected)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_follows(case: Case, dtype: torch.dtype) -> None:
    model, x = case.model(), case.x(dtype=dtype)
    try:
        case.run(case.model().to(dtype), x)
    except RuntimeError as error:
        pytest.skip(f"the library itself cannot run in {dtype}: {error}")
    case.convert(model)
    expected = case.run(model, case.x())
    model.to(dtype)
    y = case.run(model, x)
    assert y.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@each_case
def test_a_layer_moved_alone_still_works(case: Case) -> None:
    """Only one of two layers that share a meta-learner changes dtype (or device)."""
    model = case.model(torch.float32)
    case.convert(model)
    layer = model.get_submodule(case.layers[1])
    expected = kanmeta.coefficients(model)[case.layers[1]]
    layer.to(torch.float64)
    w = kanmeta.coefficients(model)[case.layers[1]]
    assert w.dtype == torch.float64
    torch.testing.assert_close(w.float(), expected)


@each_case
def test_torch_save(case: Case) -> None:
    if not case.pickles:
        pytest.skip("the library's model cannot be pickled before conversion either")
    model, x = case.model(), case.x()
    case.convert(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(case.run(loaded, x), case.run(model, x))
    assert len(kanmeta.meta_learners(loaded)) == 1
    kanmeta.materialize(loaded)
    assert type(loaded.get_submodule(case.layers[0])) is type(
        case.model().get_submodule(case.layers[0])
    )


@each_case
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself and about pykan
def test_compile_and_export(case: Case) -> None:
    model, x = case.model(), case.x()
    try:
        torch.export.export(case.model(), (x,), strict=False)
        torch.compile(case.model(), fullgraph=True, backend="aot_eager")(x)
    except Exception as error:
        pytest.skip(f"the library's own model cannot be compiled: {type(error).__name__}")
    finally:
        torch.compiler.reset()
    case.convert(model)
    cold = copy.deepcopy(model)  # compiled before it ever ran
    expected = case.run(model, x)
    expected.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    first = torch.compile(cold, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(case.output(first), expected, rtol=0, atol=1e-12)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = case.output(compiled(x))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    y.sum().backward()
    for name, p in model.named_parameters():
        if name in grads:
            torch.testing.assert_close(p.grad, grads[name], rtol=0, atol=1e-12)
    exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(case.output(exported(x)), expected, rtol=0, atol=1e-12)
    torch.compiler.reset()


@each_case
def test_functional_transforms_leave_the_model_alone(case: Case) -> None:
    model, x = case.model(), case.x()
    case.convert(model)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    before = {n: id(p) for n, p in model.named_parameters()}

    def loss(p: dict[str, Tensor]) -> Tensor:
        return case.output(functional_call(model, p, (x,))).square().sum()

    grads = torch.func.grad(loss)(parameters)
    assert {n: id(p) for n, p in model.named_parameters()} == before
    case.run(model, x).square().sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grads[name], p.grad)


@each_case
def test_per_sample_gradients_by_vmap(case: Case) -> None:
    model, x = case.model(), case.x(3)
    try:
        torch.func.vmap(lambda row: case.output(model(row[None])))(x)
    except Exception as error:
        pytest.skip(f"the library itself cannot run under vmap: {type(error).__name__}")
    case.convert(model)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(p: dict[str, Tensor], row: Tensor) -> Tensor:
        return case.output(functional_call(model, p, (row[None],))).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        one = torch.func.grad(loss)(parameters, x[i])
        for name, value in one.items():
            torch.testing.assert_close(each[name][i], value)


@each_case
def test_runs_on_the_meta_device_and_under_checkpointing(case: Case) -> None:
    model, x = case.model(), case.x()
    case.convert(model)
    checkpointed = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    y = case.output(checkpointed)
    y.square().sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    case.run(model, x).square().sum().backward()
    assert grads
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.equal(grads[name], p.grad)
    try:
        case.model().to("meta")(x.to("meta"))
    except Exception as error:
        pytest.skip(f"the library itself cannot run on the meta device: {type(error).__name__}")
    assert case.run(model.to("meta"), x.to("meta")).shape == y.shape


@each_case
def test_generated_outside_autocast(case: Case) -> None:
    model, x = case.model(torch.float32), case.x(dtype=torch.float32)
    case.convert(model)
    layer = model.get_submodule(case.layers[0])
    path = (
        kanmeta.plan(case.model(), adapters=case.adapters, edge=case.edge)
        .layers[0]
        .spec.slots[-1]
        .paths[0]
    )
    expected = tensor_at(layer, path)
    seen: list[torch.dtype] = []
    layer.register_forward_hook(lambda *_: seen.append(tensor_at(layer, path).dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = case.run(model, x)
        assert torch.equal(tensor_at(layer, path), expected)
    assert seen == [torch.float32]
    torch.testing.assert_close(y.float(), case.run(model, x), rtol=0.1, atol=0.1)


@each_case
def test_second_derivatives(case: Case) -> None:
    model, x = case.model(), case.x(2)
    case.convert(model, activation="tanh")
    assert torch.autograd.gradgradcheck(
        lambda x: case.run(model, x), x.requires_grad_(), fast_mode=True
    )
