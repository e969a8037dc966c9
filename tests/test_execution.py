"""All modes of execution compute the same function and the same gradients, for every row."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import kanmeta
from kanmeta.errors import ExecutionError, PlanError
from kanmeta.shadow import rows_are_mixed
from kanmeta.surgery import bindings
from recipes.reference import conv_kan, efficient_kan, fast_kan
from tests.case import Case
from tests.cases import CASES, EXAMPLE, case, each_case, kan
from tests.test_contract_sizes import SIZED, sizes

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")

SMALL = 1  # bytes of scratch: one row, one input, one output at a time


def streams(model: nn.Module) -> bool:
    return all(b.spec.rows != "never" for _, b in bindings(model))


def modes(model: nn.Module) -> list[tuple[str, int | None]]:
    """(execution, budget) that the model claims, apart from materialize."""
    claimed: list[tuple[str, int | None]] = [("regenerate", SMALL)]
    if streams(model):
        claimed += [("stream", SMALL), ("stream", 3000)]
    return claimed


def trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def derivatives(run: Callable[[Tensor], Tensor], x: Tensor, model: nn.Module) -> list[Any]:
    """Outputs, and gradients of the input and of all Parameters."""
    leaf = x.detach().requires_grad_() if x.is_leaf else x
    y = run(leaf)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    targets = [leaf, *trained(model)]
    return [y.detach(), *torch.autograd.grad(y, targets, weights, allow_unused=True)]


def assert_same(found: list[Any], expected: list[Any], tolerance: float = 1e-10) -> None:
    """Equal to ``tolerance`` relative to the largest gradient, and values to their own size."""
    largest = max((float(t.norm()) for t in expected[1:] if t is not None), default=0.0)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.shape == theirs.shape
            # A gradient that cancels to 0 behind a norm has no relative error of its own.
            bound = tolerance * max(float(theirs.norm()), largest)
            assert float((ours - theirs).norm()) <= bound


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


TILED = [c for c in CASES if c.adapter in ("efficient-kan", "fast-kan") and c.available]


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
    """Every way to write the sum, with leading dimensions."""
    model = case.convert(case.model(), execution="materialize", **options)
    for shape in ((7,), (2, 1, 5)):
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


class Dropped(nn.Module):
    """Drops inputs of its base branch, whether training or not."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


def test_random_numbers_are_those_of_the_forward() -> None:
    """A numerical derivative with the seed fixed is that of the masks drawn in forward."""
    layer = conv_kan.KANConv2DLayer(2, 3, 2, dropout=0.4).double()
    model = kanmeta.convert(layer, execution="stream")
    kanmeta.set_execution(model, "stream", budget=SMALL)
    x = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    weights = torch.randn(5, 3, 3, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return (model(x) * weights).sum()

    leaf = x.clone().requires_grad_()
    value = loss(leaf)
    torch.rand(7)  # something else draws in between
    before = torch.get_rng_state()
    (gradient,) = torch.autograd.grad(value, leaf)
    assert torch.equal(before, torch.get_rng_state())  # nothing else sees the replay
    direction = torch.randn_like(x)
    step = 1e-6
    numeric = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric.detach(), rtol=1e-6, atol=1e-8)
    assert not torch.equal(model(x), model(x))


def batch_norm_net() -> nn.Module:
    layer = conv_kan.KANConv2DLayer(2, 3, 2, norm_layer=nn.BatchNorm2d).double()
    return kanmeta.convert(layer, execution="materialize")


def test_batch_norm_is_not_streamed_in_training() -> None:
    model, x = batch_norm_net(), torch.rand(4, 2, 4, 4, dtype=torch.float64)
    spec = model._kanmeta.spec
    assert "statistics" in (rows_are_mixed(model, spec) or "")
    expected = derivatives(model, x, model)
    mean = model.layer_norm[0].running_mean.clone()
    model.layer_norm[0].reset_running_stats()
    kanmeta.set_execution(model, "stream", budget=SMALL)
    assert_same(derivatives(model, x, model), expected)
    torch.testing.assert_close(model.layer_norm[0].running_mean, mean)
    model.eval()
    assert rows_are_mixed(model, spec) is None


def test_a_norm_or_hook_that_is_not_known_is_not_streamed() -> None:
    class Mixing(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    layer = conv_kan.KANConv2DLayer(2, 3, 2, norm_layer=Mixing).double()
    model = kanmeta.convert(layer, execution="materialize")
    assert "not known" in (rows_are_mixed(model, model._kanmeta.spec) or "")
    x = torch.rand(4, 2, 4, 4, dtype=torch.float64)
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=SMALL)
    assert_same(derivatives(model, x, model), expected)

    hooked = case(EXAMPLE).convert(case(EXAMPLE).model(), execution="stream")
    seen: list[torch.Size] = []
    hooked.layers[0].spline_linear.register_forward_hook(lambda m, a, y: seen.append(y.shape))
    kanmeta.set_execution(hooked, "stream", budget=SMALL)
    hooked(torch.rand(6, 4, dtype=torch.float64))
    assert seen == [(6, 5)]


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


@pytest.mark.parametrize("name", ["fast-kan-base-norm", "kagn-conv-2d-g2-tap", "pykan"])
@pytest.mark.parametrize("execution", ["regenerate", "stream"])
def test_what_torch_offers(name: str, execution: str) -> None:
    c = case(name)
    model, x = c.convert(c.model(), execution="materialize"), c.x()
    expected = derivatives(lambda x: c.run(model, x), x, model)
    kanmeta.set_execution(model, execution, budget=3000)
    run = {
        "checkpoint": lambda x: c.output(checkpoint(model, x, use_reentrant=False)),
        "functional_call": lambda x: c.output(
            functional_call(model, dict(model.named_parameters()), (x,))
        ),
    }
    for call in run.values():
        assert_same(derivatives(call, x, model), expected)
    # Parameters that are put in their place only during the call
    others = {n: (p * 1.5).detach().requires_grad_() for n, p in model.named_parameters()}
    y = c.output(functional_call(model, others, (x,)))
    wanted = [p for n, p in others.items() if dict(model.named_parameters())[n].requires_grad]
    found = [y.detach(), *torch.autograd.grad(y.sum(), wanted, allow_unused=True)]
    kanmeta.set_execution(model, "materialize")
    y = c.output(functional_call(model, others, (x,)))
    expected = [y.detach(), *torch.autograd.grad(y.sum(), wanted, allow_unused=True)]
    assert_same(found, expected)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.parametrize("execution", ["regenerate", "stream"])
def test_compiled_and_transformed_models_materialize(execution: str) -> None:
    model = kanmeta.convert(kan(3, 4, 2).double(), execution=execution)
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = derivatives(model, x, model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(derivatives(compiled, x, model), expected)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: model(row[None])[0]))(x)
    leaf = x.clone().requires_grad_()
    rows = [torch.autograd.grad(model(leaf)[:, o].sum(), leaf)[0] for o in range(2)]
    torch.testing.assert_close(jacobian, torch.stack(rows, 1))
    _, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, jacobian.sum(-1))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        unpacked = torch.autograd.forward_ad.unpack_dual(model(dual))
    torch.testing.assert_close(unpacked.tangent, tangent)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["efficient-kan-no-scaler", "fast-kan-base-norm", "kan-conv-2d-g2-tap"]
)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    c = case(name)
    model, x = c.convert(c.model(torch.float32), execution="materialize"), c.x(dtype=torch.float32)

    def found() -> list[Any]:
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            y = c.run(model, leaf)
        return [y, *torch.autograd.grad(y.float().sum(), [leaf, *trained(model)])]

    expected = found()
    for execution, budget in modes(model):
        kanmeta.set_execution(model, execution, budget=budget)
        for ours, theirs in zip(found(), expected, strict=True):
            assert ours.dtype == theirs.dtype
            scale = float(theirs.detach().float().abs().max()) + 1e-3
            torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=0.05)


def test_a_changed_prompt_is_noticed_in_backward() -> None:
    for execution in ("regenerate", "stream"):
        model = kanmeta.convert(kan(3, 4).double(), execution=execution)
        y = model(torch.randn(5, 3, dtype=torch.float64)).sum()
        with torch.no_grad():
            model.layers[0].prompts.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_two_models_with_different_modes_in_two_threads() -> None:
    x = torch.randn(64, 4, dtype=torch.float64)
    models = [case(EXAMPLE).convert(case(EXAMPLE).model(), execution="materialize") for _ in "ab"]
    expected = derivatives(models[0], x, models[0])
    kanmeta.set_execution(models[0], "stream", budget=2000)
    kanmeta.set_execution(models[1], "regenerate")
    results: list[list[list[Any]]] = [[], []]

    def work(i: int) -> None:
        for _ in range(20):
            results[i].append(derivatives(models[i], x, models[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(r) for r in results] == [20, 20]
    for found in results[0] + results[1]:
        assert_same(found, expected)


def test_one_streamed_layer_in_two_threads() -> None:
    model = case(EXAMPLE).convert(case(EXAMPLE).model(), execution="stream")
    kanmeta.set_execution(model, "stream", budget=2000)
    inputs = [torch.randn(32, 4, dtype=torch.float64) for _ in range(2)]
    expected = [derivatives(model, x, model) for x in inputs]
    results: list[list[list[Any]]] = [[], []]

    def work(i: int) -> None:
        for _ in range(10):
            results[i].append(derivatives(model, inputs[i], model))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, right in zip(results, expected, strict=True):
        assert len(found) == 10
        for each in found:
            assert_same(each, right)


def test_choosing_modes(tmp_path: Any) -> None:
    model = kanmeta.convert(kan(3, 4, 2), execution="auto")
    kanmeta.set_execution(model, "stream", layers="layers.1", budget=12345)
    assert [b.execution for _, b in bindings(model)] == ["auto", "stream"]
    assert [b.budget for _, b in bindings(model)] == [None, 12345]
    kanmeta.save(model, tmp_path / "m.safetensors")
    loaded = kanmeta.load(kan(3, 4, 2), tmp_path / "m.safetensors")
    assert [b.execution for _, b in bindings(loaded)] == ["auto", "stream"]
    with pytest.raises(PlanError, match="magic"):
        kanmeta.set_execution(model, "magic")
    with pytest.raises(PlanError, match="fits none"):
        kanmeta.set_execution(model, "stream", layers="layer.7")
    with pytest.raises(PlanError, match="budget"):
        kanmeta.set_execution(model, "stream", budget=0)


def test_a_layer_that_never_streams_says_so() -> None:
    c = case("kaln-conv-2d-g2-tap")
    with pytest.raises(PlanError, match=r"layers.0 .KALN.*cannot run in blocks"):
        c.convert(c.model(), execution="stream")
    model = c.convert(c.model())
    with pytest.raises(PlanError, match="cannot run in blocks"):
        kanmeta.set_execution(model, "stream")


def test_outputs_that_cannot_be_joined() -> None:
    class FastKANLayer(fast_kan.FastKANLayer):
        def forward(self, x: Tensor, use_layernorm: bool = True) -> dict[str, Tensor]:
            return {"y": super().forward(x, use_layernorm)}

    layer = kanmeta.convert(FastKANLayer(4, 5), execution="stream")
    with pytest.raises(ExecutionError, match="returned a dict"):
        layer(torch.rand(3, 4))


def test_auto_streams_large_layers_and_materializes_small_ones() -> None:
    """What stays alive for backward, in bytes."""

    def kept(model: nn.Module, x: Tensor) -> int:
        model(x)  # the first time the basis is compared with the library's
        found: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(x)
        assert y.requires_grad
        return sum(found.values())

    model, x = kanmeta.convert(kan(64, 64, 64)), torch.randn(512, 64)
    unlimited = kept(model, x)
    kanmeta.set_execution(model, "auto", budget=4 << 20)
    streamed = kept(model, x)
    kanmeta.set_execution(model, "materialize")
    whole = kept(model, x)
    inputs, prompts = 2 * x.numel() * 4, 2 * 64 * 64 * 4
    assert streamed < 1.3 * (inputs + prompts)
    assert whole == unlimited
    assert whole > 20 * streamed
    small = kanmeta.convert(kan(3, 4, 2))
    kanmeta.set_execution(small, "materialize")
    y = small(x[:4, :3])
    kanmeta.set_execution(small, "auto", budget=4 << 20)
    assert type(small(x[:4, :3]).grad_fn) is type(y.grad_fn)


class Centred(efficient_kan.KANLinear):
    """Its forward mixes rows, which the library's own does not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def test_a_subclass_with_a_forward_of_its_own_never_streams() -> None:
    layer, x = Centred(20, 30), torch.rand(50, 20)
    with pytest.raises(PlanError, match="cannot run in blocks of rows"):
        kanmeta.convert(layer, execution="stream")
    kanmeta.convert(layer)
    expected = layer(x)
    kanmeta.set_execution(layer, "auto", budget=1)
    torch.testing.assert_close(layer(x), expected)
