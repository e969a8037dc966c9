"""Order of layers: traced, run on example inputs, or as registered; never touching the model."""

import functools
import random

import numpy
import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from kanmeta.graph import execution_order
from recipes.reference.efficient_kan import KANLinear


def linear() -> KANLinear:
    return KANLinear(6, 6)


class Reversed(nn.Module):
    """Registers first what it uses last, keeps notes in itself and draws random numbers."""

    def __init__(self, data_dependent: bool = False) -> None:
        super().__init__()
        self.last, self.unused, self.first = linear(), linear(), linear()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("calls", torch.zeros(()))
        self.history: list[object] = []
        self.cache: dict[str, object] = {}
        self.running = torch.zeros(6)
        self.data_dependent = data_dependent

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        self.calls += 1
        self.history.append(x)
        self.cache["x"] = x
        self.running.add_(1)
        self.note = x
        if self.data_dependent and x.sum() > 0:
            x = x + 1
        x = x + torch.rand(6)
        if flip:
            x = -x
        return self.last(self.norm(self.first(x)))


def names(model: nn.Module, example: tuple[Tensor, ...] | None = None) -> tuple[list[str], str]:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, KANLinear)}
    return execution_order(model, layers, example)


def fingerprint(model: Reversed) -> object:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return (
        {k: v.tolist() for k, v in state.items()},
        list(model.history),
        dict(model.cache),
        model.running.tolist(),
        sorted(model.__dict__),
        [len(m._forward_pre_hooks) for m in model.modules()],
        [m.training for m in model.modules()],
        torch.get_rng_state().tolist(),
    )


def test_traced_order_leaves_the_model_alone() -> None:
    model = Reversed()
    before = fingerprint(model)
    assert names(model) == (["first", "last", "unused"], "traced")
    assert fingerprint(model) == before


def test_data_dependent_models_need_example_inputs() -> None:
    model = Reversed(data_dependent=True)
    x = torch.rand(3, 6)
    before = fingerprint(model)
    assert names(model) == (["last", "unused", "first"], "registration order")
    ran = names(model, (x,))
    assert ran == (["first", "last", "unused"], "ran on example inputs")
    assert fingerprint(model) == before


def test_plan_uses_it_and_numbers_clusters_by_it() -> None:
    planned = kanmeta.plan(Reversed(), clusters="layer", hidden=2)
    assert [(p.name, p.cluster) for p in planned.layers] == [
        ("first", 0),
        ("last", 1),
        ("unused", 2),
    ]
    assert planned.order_source == "traced"
    example = (torch.rand(3, 6),)
    dependent = kanmeta.plan(Reversed(data_dependent=True), example_inputs=example)
    assert dependent.order_source == "ran on example inputs"


def test_convert_after_planning_is_what_was_planned() -> None:
    model = Reversed()
    planned = kanmeta.plan(model, hidden=2)
    kanmeta.convert(model, hidden=2)
    assert list(kanmeta.meta_learners(model)) == ["first"]  # the first in order owns it
    assert planned.clusters[0].layers == ("first", "last", "unused")


class Closure(nn.Module):
    """Calls a layer through a closure over the original, as kan_gpt does."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"b": linear(), "a": linear()})
        parts = self.parts
        self.body = lambda x: parts["b"](parts["a"](x))
        self.opaque = False

    def forward(self, x: Tensor) -> Tensor:
        return x if self.opaque and x.sum() > 1e9 else self.body(x)


class ByForward(nn.Module):
    """Calls a layer's forward, not the layer."""

    def __init__(self, opaque: bool) -> None:
        super().__init__()
        self.last, self.first = linear(), linear()
        self.opaque = opaque

    def forward(self, x: Tensor) -> Tensor:
        return x if self.opaque and x.sum() > 1e9 else self.last(self.first.forward(x))


@pytest.mark.parametrize("opaque", [True, False])
def test_layers_called_by_forward_are_seen(opaque: bool) -> None:
    planned = kanmeta.plan(ByForward(opaque), hidden=2, example_inputs=(torch.rand(2, 6),))
    assert [layer.name for layer in planned.layers] == ["first", "last"]


def test_a_model_that_cannot_run_says_so() -> None:
    with pytest.raises(errors.PlanError, match=r"cannot run on example_inputs.*shape"):
        kanmeta.plan(ByForward(True), hidden=2, example_inputs=(torch.rand(2, 7),))


@pytest.mark.parametrize("kind", ["lambda", "partial"])
@pytest.mark.parametrize("example", [None, (torch.rand(2, 6),)])
def test_closures_over_modules_run_the_copies(kind: str, example: object) -> None:
    model = Closure()
    if kind == "partial":
        model.body = functools.partial(lambda parts, x: parts["b"](parts["a"](x)), model.parts)
    model.opaque = example is not None
    seen: list[object] = []
    model.parts["a"].register_forward_hook(lambda *_: seen.append(1))
    planned = kanmeta.plan(model, hidden=2, example_inputs=example)
    assert [layer.name for layer in planned.layers] == ["parts.a", "parts.b"]
    assert planned.order_source == ("traced" if example is None else "ran on example inputs")
    assert seen == []
    kanmeta.convert(model, hidden=2)
    model(torch.rand(2, 6)).sum().backward()
    assert all(z.grad is not None for z in kanmeta.prompts(model).values())


class Nosy(nn.Module):
    """Hooks, nested containers, a method stored under another name, three random sources."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.seen: list[object] = []
        self.nested: dict[str, list[object]] = {"a": []}
        self.relay = nn.Identity()
        self.relay.forward = self.relay_forward
        self.inner.register_forward_hook(lambda module, args, out: self.seen.append(out))

    def relay_forward(self, x: Tensor) -> Tensor:
        self.last = x
        return x

    def forward(self, x: Tensor) -> Tensor:
        self.nested["a"].append(x)
        random.random()
        numpy.random.rand()
        return self.inner(self.relay(x))


@pytest.mark.parametrize("example", [None, (torch.rand(2, 6),)])
def test_planning_leaves_no_trace(example: object) -> None:
    model = Nosy()
    states = random.getstate(), numpy.random.get_state()[1].tolist()
    kanmeta.plan(model, hidden=2, example_inputs=example)
    assert model.seen == []
    assert model.nested == {"a": []}
    assert not hasattr(model, "last")
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states
