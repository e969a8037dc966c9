"""The contract every layer keeps, for every row of the case table: function and surgery."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import kanmeta
from kanmeta.errors import AlreadyConvertedError
from tests.cases import Case, each_case


def as_identity(case: Case, model: nn.Module) -> nn.Module:
    """Convert so that M(z) = z and z = the original coefficients."""
    planned = kanmeta.plan(model, adapters=case.adapters, edge=case.edge)
    w = {p.name: p.spec.read(model.get_submodule(p.name)) for p in planned.layers}
    d = planned.layers[0].spec.dim_w
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


def one_edge_is_one_pair(case: Case, layer: nn.Module, image: tuple[int, ...]) -> None:
    """For a layer converted with :func:`as_identity`."""
    without_norms(layer)
    spec, z = layer._kanmeta.spec, layer.prompts
    size = {"g": 1} | {axis: spec.sizes[axis] for axis in ("g", "o", "i") if axis in spec.sizes}
    order = [axis for axis in spec.edge_axes if axis in size]
    inputs, outputs = size["g"] * size["i"], size["g"] * size["o"]
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(1, inputs, *image, dtype=torch.float64, generator=generator) - 0.4
    # Some layers scale by the extremes of the whole batch: two further samples hold these.
    ends = torch.stack([torch.ones_like(x[0]), -torch.ones_like(x[0])])

    def per_channel(x: Tensor) -> Tensor:
        y = case.output(layer(torch.cat([x, ends]), **case.layer_kwargs))[0]
        return y.flatten(1).sum(1) if y.dim() > 1 else y

    case.bare(layer)
    # All edges are zero, so that an activation behind their sum hides none; but a wavelet divides
    # by its scale.
    ones = [slot.path.endswith("scale") for slot in spec.slots]
    zero = torch.tensor(ones).repeat_interleave(torch.tensor(spec.widths)).to(z)
    with torch.no_grad():
        z.copy_(zero.expand(z.shape))
    rest = torch.autograd.functional.jacobian(per_channel, x)
    for edge in itertools.product(*(range(size[axis]) for axis in order)):
        position = dict(zip(order, edge, strict=True))
        o, i = (position.get("g", 0) * size[axis] + position[axis] for axis in ("o", "i"))
        with torch.no_grad():
            z.copy_(zero.expand(z.shape))
            z[edge] += torch.randn(z[edge].shape, dtype=torch.float64, generator=generator) / 2
        jacobian = torch.autograd.functional.jacobian(per_channel, x) - rest
        reacts = jacobian.reshape(outputs, inputs, -1).abs().amax(-1) > 1e-12
        assert reacts.nonzero().tolist() == [[o, i]]


def without_norms(layer: nn.Module) -> None:
    """Norms mix the features of a layer; what is left is one function an edge."""
    norms = (nn.LayerNorm, nn.modules.batchnorm._NormBase)
    for module in list(layer.modules()):
        for name, child in module.named_children():
            if isinstance(child, norms):
                setattr(module, name, nn.Identity())


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
    one_edge_is_one_pair(case, model.get_submodule(case.layers[0]), case.in_shape[1:])


@each_case
def test_same_function_both_ways(case: Case) -> None:
    model, x = case.model(), case.x().requires_grad_()
    expected = case.run(model, x)
    expected_grad = torch.autograd.grad(expected.square().sum(), x)[0]
    fresh, state = case.model(seed=5), copy.deepcopy(model.state_dict())
    assert not torch.allclose(case.run(fresh, x), expected)

    as_identity(case, model)
    y = case.run(model, x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    grad = torch.autograd.grad(y.square().sum(), x)[0]
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)

    assert kanmeta.materialize(model) is model
    torch.testing.assert_close(case.run(model, x), expected, rtol=0, atol=1e-12)
    assert list(model.state_dict()) == list(state)
    fresh.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(case.run(fresh, x), expected, rtol=0, atol=1e-12)


@each_case
def test_materialize_is_the_exact_inverse(case: Case) -> None:
    model, x = case.model(), case.x()
    classes = [(name, type(m)) for name, m in model.named_modules()]
    parameters = [(n, p.shape, p.requires_grad, type(p)) for n, p in model.named_parameters()]
    case.convert(model)
    expected = case.run(model, x)
    kanmeta.materialize(model)
    assert torch.equal(case.run(model, x), expected)
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
    case.run(model, x).square().sum().backward()
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
    case.run(model, x)
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
