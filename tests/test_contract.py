"""The contract every layer keeps, for every row of the case table."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import kanmeta
from kanmeta.errors import AlreadyConvertedError, CoefficientWriteError, LargerModelWarning
from tests.cases import CASES, Case

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def run(case: Case, model: nn.Module, x: Tensor) -> Tensor:
    return case.output(model(x))


def as_identity(case: Case, model: nn.Module) -> nn.Module:
    """Convert so that M(z) = z and z = the original coefficients."""
    planned = kanmeta.plan(model, adapters=case.adapters, edge=case.edge)
    w = {p.name: p.spec.read(model.get_submodule(p.name)) for p in planned.layers}
    d = case.dim_w
    with pytest.warns(LargerModelWarning, match="no shorter than dim_w"):
        case.convert(model, dim_z=d, hidden=d, activation="identity", bias=False)
    with torch.no_grad():
        for meta in kanmeta.meta_learners(model).values():
            meta.weight1.copy_(torch.eye(d))
            meta.weight2.copy_(torch.eye(d))
        for name, z in kanmeta.prompts(model).items():
            z.copy_(w[name])
            layer = model.get_submodule(name)
            layer.coefficient_scale.fill_(1)
            layer.coefficient_offset.zero_()
    return model


@each_case
def test_recognition_and_counts(case: Case) -> None:
    model = case.model()
    before = sum(p.numel() for p in model.parameters())
    planned = kanmeta.plan(model, hidden=3, adapters=case.adapters, edge=case.edge)
    assert tuple(layer.name for layer in planned.layers) == case.layers
    for layer in planned.layers:
        assert layer.spec.adapter == case.adapter
        assert layer.spec.dim_w == case.dim_w
    case.convert(model)
    after = sum(p.numel() for p in model.parameters())
    assert (planned.parameters_before, planned.parameters_after) == (before, after)
    summary = kanmeta.summary(model)
    assert (summary.parameters_before, summary.parameters_after) == (before, after)
    edges = sum(layer.spec.edges for layer in planned.layers)
    assert sum(z.numel() for z in kanmeta.prompts(model).values()) == edges
    assert str(before) in str(planned).replace(",", "")


@each_case
def test_layout_one_edge_is_one_input_output_pair(case: Case) -> None:
    """Write one edge, see exactly one (output, input) pair react."""
    model = as_identity(case, case.model())
    name = case.layers[0]
    layer = model.get_submodule(name)
    z = kanmeta.prompts(model)[name]
    channels, out = z.shape[1], z.shape[0]
    x = torch.rand(1, channels, *case.in_shape[1:], dtype=torch.float64) - 0.4

    def per_channel(x: Tensor) -> Tensor:
        y = case.output(layer(x, **case.layer_kwargs))[0]
        return y.flatten(1).sum(1) if y.dim() > 1 else y

    with torch.no_grad():
        z.zero_()
    rest = torch.autograd.functional.jacobian(per_channel, x)  # of what is not generated
    for edge in range(math.prod(z.shape[:2])):
        o, i = divmod(edge, channels)
        with torch.no_grad():
            z.zero_()
            z[o, i] = torch.randn(z[o, i].shape, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(per_channel, x) - rest
        reacts = jacobian.reshape(out, channels, -1).abs().amax(-1) > 1e-12
        assert reacts.nonzero().tolist() == [[o, i]]


@each_case
def test_same_function_both_ways(case: Case) -> None:
    model, x = case.model(), case.x().requires_grad_()
    expected = run(case, model, x)
    expected_grad = torch.autograd.grad(expected.square().sum(), x)[0]
    fresh, state = case.model(seed=5), copy.deepcopy(model.state_dict())
    assert not torch.allclose(run(case, fresh, x), expected)

    as_identity(case, model)
    y = run(case, model, x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    grad = torch.autograd.grad(y.square().sum(), x)[0]
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)

    assert kanmeta.materialize(model) is model
    torch.testing.assert_close(run(case, model, x), expected, rtol=0, atol=1e-12)
    assert list(model.state_dict()) == list(state)
    fresh.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(run(case, fresh, x), expected, rtol=0, atol=1e-12)


@each_case
def test_materialize_is_the_exact_inverse(case: Case) -> None:
    model, x = case.model(), case.x()
    classes = [(name, type(m)) for name, m in model.named_modules()]
    parameters = [(n, p.shape, p.requires_grad, type(p)) for n, p in model.named_parameters()]
    case.convert(model)
    expected = run(case, model, x)
    kanmeta.materialize(model)
    assert torch.equal(run(case, model, x), expected)
    assert [(name, type(m)) for name, m in model.named_modules()] == classes
    after = [(n, p.shape, p.requires_grad, type(p)) for n, p in model.named_parameters()]
    assert after == parameters
    assert all(p.is_contiguous() for p in model.parameters() if p.requires_grad)
    case.convert(model)  # and can be converted anew


@each_case
@pytest.mark.parametrize(
    ("bias", "dim_z", "activation"), [(True, 2, "tanh"), (False, 1, "relu"), (True, 1, "relu")]
)
def test_gradients_are_right(case: Case, bias: bool, dim_z: int, activation: str) -> None:
    model, x = case.model(), case.x(2)
    case.convert(model, bias=bias, dim_z=dim_z, activation=activation, hidden=2)
    names = [n for n, p in model.named_parameters() if ".prompts" in n or "meta_learner" in n]
    values = [dict(model.named_parameters())[n].detach().requires_grad_() for n in names]

    def f(*tensors: Tensor) -> Tensor:
        return case.output(functional_call(model, dict(zip(names, tensors, strict=True)), (x,)))

    assert torch.autograd.gradcheck(f, values, fast_mode=True)
    run(case, model, x).square().sum().backward()
    named = dict(model.named_parameters())
    assert all(named[n].grad is not None for n in names)
    for name in kanmeta.prompts(model):
        assert (named[f"{name}.prompts"].grad != 0).any()


@each_case
def test_surgery_keeps_everything_else(case: Case) -> None:
    model, x = case.model(), case.x()
    layer = model.get_submodule(case.layers[0])
    cls, state = type(layer), model.state_dict()
    modules = {name: id(m) for name, m in model.named_modules()}
    calls: list[str] = []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    case.convert(model)
    assert model.get_submodule(case.layers[0]) is layer
    assert isinstance(layer, cls)
    assert type(layer).__name__ == cls.__name__
    run(case, model, x)
    assert calls == ["hook"]
    assert modules.items() <= {name: id(m) for name, m in model.named_modules()}.items()
    left = {k: v for k, v in model.state_dict().items() if k in state}
    gone = set(state) - set(left)
    for key, value in left.items():
        assert value.data_ptr() == state[key].data_ptr()
    new = set(model.state_dict()) - set(state)
    constants = {"prompts", "coefficient_scale", "coefficient_offset"}
    expected = {f"{name}.{c}" for name in case.layers for c in constants}
    parts = ("weight1", "weight2", "bias1", "bias2")
    expected |= {f"{case.layers[0]}.meta_learner.{p}" for p in parts}
    assert new == expected
    assert gone
    for key in gone:
        assert key.startswith(case.layers)


@each_case
def test_generated_tensors_can_be_read_like_parameters(case: Case) -> None:
    model = case.model()
    planned = kanmeta.plan(model, adapters=case.adapters, edge=case.edge)
    spec = planned.layers[0].spec
    layer = model.get_submodule(case.layers[0])
    shapes = {path: _get(layer, path).shape for path in spec.paths}
    case.convert(model)
    for path, shape in shapes.items():
        tensor = _get(layer, path)
        assert tensor.shape == shape
        assert tensor.dtype == torch.float64
        assert tensor.is_contiguous()
    total = sum(_get(layer, slot.path).sum() for slot in spec.slots)
    assert isinstance(total, Tensor)
    total.backward()
    assert kanmeta.prompts(model)[case.layers[0]].grad.abs().sum() > 0
    with torch.no_grad():
        w = kanmeta.coefficients(model)[case.layers[0]]
    assert w.shape == (*spec.edge_shape, spec.dim_w)
    torch.testing.assert_close(
        spec.split(w)[spec.slots[-1].path], _get(layer, spec.slots[-1].path).detach()
    )


def _get(layer: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(layer.get_submodule(owner), name)


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
    expected = run(case, model, x)
    for path in spec.paths:
        owner, _, name = path.rpartition(".")
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(CoefficientWriteError, match="materialize"),
        ):
            WRITES[write](layer.get_submodule(owner), name)
    assert torch.equal(run(case, model, x), expected)


@each_case
def test_vanilla_checkpoint_is_refused_and_the_advice_helps(case: Case) -> None:
    model, other, x = case.model(), case.model(seed=7), case.x()
    case.convert(model)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"kanmeta\.materialize"):
            model.load_state_dict(other.state_dict(), strict=strict)
    kanmeta.materialize(model).load_state_dict(other.state_dict())
    assert torch.equal(run(case, model, x), run(case, other, x))


@each_case
def test_deepcopy_shares_inside_and_not_across(case: Case) -> None:
    model, x = case.model(), case.x()
    case.convert(model)
    twin = copy.deepcopy(model)
    assert torch.equal(run(case, twin, x), run(case, model, x))
    (ours,), (theirs,) = kanmeta.meta_learners(model).values(), kanmeta.meta_learners(twin).values()
    assert ours is not theirs
    assert {id(p) for p in model.parameters()}.isdisjoint({id(p) for p in twin.parameters()})
    expected = run(case, model, x).detach().clone()
    with torch.no_grad():
        theirs.weight2.mul_(2)
        assert torch.equal(run(case, model, x), expected)
        alone = run(case, twin, x)
        for name in case.layers:  # both layers of the copy follow its own meta-learner
            w = kanmeta.coefficients(twin)[name]
            assert not torch.allclose(w, kanmeta.coefficients(model)[name])
    assert not torch.allclose(alone, expected)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_follows(case: Case, dtype: torch.dtype) -> None:
    model, x = case.model(), case.x(dtype=dtype)
    try:
        run(case, case.model().to(dtype), x)
    except RuntimeError as error:
        pytest.skip(f"the library itself cannot run in {dtype}: {error}")
    case.convert(model)
    expected = run(case, model, case.x())
    model.to(dtype)
    y = run(case, model, x)
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
    assert torch.equal(run(case, loaded, x), run(case, model, x))
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
    expected = run(case, model, x)
    expected.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
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
    run(case, model, x).square().sum().backward()
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
    run(case, model, x).square().sum().backward()
    assert grads
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.equal(grads[name], p.grad)
    try:
        case.model().to("meta")(x.to("meta"))
    except Exception as error:
        pytest.skip(f"the library itself cannot run on the meta device: {type(error).__name__}")
    assert run(case, model.to("meta"), x.to("meta")).shape == y.shape


@each_case
def test_generated_outside_autocast(case: Case) -> None:
    model, x = case.model(torch.float32), case.x(dtype=torch.float32)
    case.convert(model)
    layer = model.get_submodule(case.layers[0])
    path = kanmeta.plan(case.model(), adapters=case.adapters).layers[0].spec.slots[-1].path
    expected = _get(layer, path)
    seen: list[torch.dtype] = []
    layer.register_forward_hook(lambda *_: seen.append(_get(layer, path).dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(case, model, x)
        assert torch.equal(_get(layer, path), expected)
    assert seen == [torch.float32]
    torch.testing.assert_close(y.float(), run(case, model, x), rtol=0.1, atol=0.1)


@each_case
def test_second_derivatives(case: Case) -> None:
    model, x = case.model(), case.x(2)
    case.convert(model, activation="tanh")
    assert torch.autograd.gradgradcheck(
        lambda x: run(case, model, x), x.requires_grad_(), fast_mode=True
    )


@each_case
def test_converting_twice_is_refused(case: Case) -> None:
    model = case.model()
    case.convert(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(AlreadyConvertedError, match="materialize"):
        case.convert(model)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[k], v) for k, v in state.items())


@each_case
def test_match_gives_the_librarys_mean_and_spread(case: Case) -> None:
    model = case.model()
    planned = kanmeta.plan(model, adapters=case.adapters, edge=case.edge)
    w = {p.name: p.spec.read(model.get_submodule(p.name)) for p in planned.layers}
    case.convert(model, hidden=8)
    for layer in planned.layers:
        ours = torch.split(kanmeta.coefficients(model)[layer.name], layer.spec.widths, -1)
        theirs = torch.split(w[layer.name], layer.spec.widths, -1)
        for a, b in zip(ours, theirs, strict=True):
            assert b.std() > 0
            # First values are drawn for each layer in at least single precision.
            torch.testing.assert_close(a.mean(), b.mean(), rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(
                a.std(correction=0), b.std(correction=0), rtol=1e-5, atol=1e-7
            )


@each_case
def test_a_seed_gives_the_same_model_and_leaves_global_rng_alone(case: Case) -> None:
    state = torch.get_rng_state()
    first, second, other = (
        case.convert(case.model(), generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, z in kanmeta.prompts(first).items():
        assert torch.equal(z, kanmeta.prompts(second)[name])
        assert not torch.equal(z, kanmeta.prompts(other)[name])
    (ours,), (same,) = kanmeta.meta_learners(first).values(), kanmeta.meta_learners(second).values()
    for a, b in zip(ours.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # not equal: pykan's least squares vary in the last digit
