"""Modes of execution under what torch offers: compilers, transforms, autocast, threads."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import kanmeta
from recipes.reference import fast_kan
from tests.cases import EXAMPLE, case, kan
from tests.execution_help import assert_same, derivatives, modes, trained

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


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


@pytest.mark.parametrize("make", [lambda: kan(3, 4), lambda: fast_kan.FastKAN([3, 4])])
def test_a_changed_prompt_is_noticed_in_backward(make: Callable[[], nn.Module]) -> None:
    for execution in ("regenerate", "stream"):
        model = kanmeta.convert(make().double(), execution=execution)
        y = model(torch.randn(5, 3, dtype=torch.float64)).sum()
        with torch.no_grad():
            model.layers[0].prompts.add_(1)
        with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
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
