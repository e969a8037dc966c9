"""carry_optimizer: what stays keeps its state, what is new trains on in the right group."""

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from recipes.reference.efficient_kan import KAN
from recipes.reference.fast_kan import FastKAN

SIZES = [6, 30, 4]
PLAIN = ["layernorm.weight", "layernorm.bias", "base_linear.bias"]
GONE = ["spline_linear.weight", "base_linear.weight"]

Build = Callable[[Any], torch.optim.Optimizer]
BUILD: dict[str, Build] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def step(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    x = torch.rand(8, SIZES[0], generator=torch.Generator().manual_seed(0))
    (model(x) - x[:, :4]).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


def convert(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.LargerModelWarning)
        kanmeta.convert(model, hidden=4)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """One of layer 0, one of what is in layer 1, with other options."""
    first, second = model.layers  # type: ignore[misc]
    return [
        {"params": list(first.parameters()), "weight_decay": 0.1},  # type: ignore[union-attr]
        {"params": list(second.parameters()), "lr": 0.5, "name": "second"},  # type: ignore[union-attr]
    ]


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {n: optimizer.state[p] for n, p in model.named_parameters() if p in optimizer.state}


@pytest.mark.parametrize("name", BUILD)
def test_what_stays_keeps_its_state_and_what_is_new_trains(name: str) -> None:
    model = FastKAN(SIZES)
    optimizer = BUILD[name](groups(model))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for _ in range(3):
        step(model, optimizer)
    scheduler.step()
    before = copy.deepcopy(states(model, optimizer))
    assert all(v for v in before.values())
    with kanmeta.carry_optimizer(optimizer, model) as carried:
        convert(model)
    plain = {f"layers.{i}.{n}" for i in range(2) for n in PLAIN}
    meta = {f"layers.0.meta_learner.{n}" for n in ("weight1", "weight2", "bias1", "bias2")}
    prompts = {"layers.0.prompts", "layers.1.prompts"}
    frozen = {f"layers.{i}.rbf.grid" for i in range(2)}
    assert set(carried.kept) == plain | frozen
    assert set(carried.reset) == prompts | meta
    assert set(carried.dropped) == {f"layers.{i}.{n}" for i in range(2) for n in GONE}
    assert carried.left_out == ()
    now = states(model, optimizer)
    assert {n for n, v in now.items() if v} == plain
    assert len(optimizer.state) == len(plain)
    for n, values in now.items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[n][key])), (n, key)
    # Every Parameter in one group, with the options of what it stands for.
    first, second = optimizer.param_groups
    names = {p: n for n, p in model.named_parameters()}
    assert {names[p] for p in first["params"]} == {n for n in names.values() if "layers.0" in n}
    assert {names[p] for p in second["params"]} == {n for n in names.values() if "layers.1" in n}
    assert (first["lr"], first["weight_decay"], second["lr"]) == (0.005, 0.1, 0.25)
    values = copy.deepcopy(dict(model.named_parameters()))
    step(model, optimizer)
    assert {n for n, p in model.named_parameters() if torch.equal(p, values[n])} == frozen
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.0025, 0.125]
    other = BUILD[name](groups(model))  # state goes to disk and back as ever
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_sgd_goes_on_as_if_nothing_had_happened() -> None:
    """Two plain numbers have the same momentum with and without a conversion and its undoing."""
    models = [FastKAN(SIZES)]
    models.append(copy.deepcopy(models[0]))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(3):
            step(model, optimizer)
    with kanmeta.carry_optimizer(optimizers[0], models[0]) as there:
        convert(models[0])
    with kanmeta.carry_optimizer(optimizers[0], models[0]) as back:
        kanmeta.materialize(models[0])
    assert set(back.kept) == set(there.kept)
    assert set(back.reset) == {f"layers.{i}.{n}" for i in range(2) for n in GONE}
    assert set(back.dropped) == set(there.reset)
    models[0].load_state_dict(models[1].state_dict())
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer)
    for (n, a), (_, b) in zip(*(m.named_parameters() for m in models), strict=True):
        assert torch.equal(a, b) == (n in there.kept), n


def test_materialized_coefficients_take_the_group_of_their_prompts() -> None:
    model = FastKAN(SIZES)
    convert(model)
    optimizer = torch.optim.Adam(kanmeta.param_groups(model, lr=1e-3, prompt_lr=1e-2))
    step(model, optimizer)
    with kanmeta.carry_optimizer(optimizer, model):
        kanmeta.materialize(model)
    sizes = {group["name"]: len(group["params"]) for group in optimizer.param_groups}
    assert sizes == {"prompts": 4, "meta_learners": 0, "other": 6}  # not the frozen grids
    step(model, optimizer)


def test_layers_that_were_not_trained_stay_so_and_names_follow() -> None:
    model = FastKAN(SIZES)
    optimizer = torch.optim.Adam(model.layers[1].named_parameters())
    named = "param_names" in optimizer.param_groups[0]  # since torch 2.7
    with kanmeta.carry_optimizer(optimizer, model) as carried:
        convert(model)
    assert carried.left_out == ("layers.0.prompts",)
    assert set(carried.reset) == {"layers.1.prompts"} | {
        f"layers.0.meta_learner.{n}" for n in ("weight1", "weight2", "bias1", "bias2")
    }
    (group,) = optimizer.param_groups
    if named:
        assert len(group["param_names"]) == len(group["params"])
        assert "layers.1.prompts" in group["param_names"]
    assert "reset: layers.0.meta_learner" in str(carried)


def test_an_error_in_the_block_leaves_what_fits_the_model() -> None:
    model = FastKAN(SIZES)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(errors.PlanError), kanmeta.carry_optimizer(optimizer, model) as carried:
        kanmeta.convert(model, dim_z=0)
    assert (carried.reset, carried.dropped) == ((), ())
    assert _equal(optimizer.state_dict(), before)
    carried = _interrupted(optimizer, model)
    assert carried.reset
    step(model, optimizer)
    assert all(p.grad is not None for p in kanmeta.prompts(model).values())


def _interrupted(optimizer: torch.optim.Optimizer, model: nn.Module) -> kanmeta.CarriedOptimizer:
    with contextlib.suppress(KeyboardInterrupt), kanmeta.carry_optimizer(optimizer, model) as found:
        convert(model)
        raise KeyboardInterrupt
    return found


def _equal(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return a == b


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adagrad])
def test_optimisers_that_cannot_follow_are_refused_before_anything_happens(kind: Any) -> None:
    model = FastKAN(SIZES)
    optimizer = kind(model.parameters())
    with (
        pytest.raises(errors.PlanError, match="make a new optimiser afterwards") as raised,
        kanmeta.carry_optimizer(optimizer, model),
    ):
        pytest.fail("the block must not run")
    assert kind.__name__ in str(raised.value)
    convert(model)
    new = kind(model.parameters())  # what the advice comes to
    assert len(new.param_groups[0]["params"]) == len(list(model.parameters()))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_trains_on_what_it_can_and_says_what_another_optimiser_has_to_train() -> None:
    model = nn.Sequential(FastKAN(SIZES), nn.Linear(4, 4))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    muon = torch.optim.Muon(matrices, lr=0.01)
    others = torch.optim.AdamW([p for p in model.parameters() if p.ndim != 2], lr=0.01)
    step(model, muon, others)
    momentum = muon.state[model[1].weight]["momentum_buffer"]
    with (
        pytest.warns(UserWarning, match=r"to another one: other\.add_param") as w,
        kanmeta.carry_optimizer(muon, model) as carried,
        kanmeta.carry_optimizer(others, model),
    ):
        convert(model)
    assert w[0].filename == __file__
    assert carried.kept == ("1.weight",)
    assert muon.state[model[1].weight]["momentum_buffer"] is momentum
    new = {n: p for n, p in model.named_parameters() if n in carried.left_out}
    assert any("meta_learner.weight1" in n for n in new)
    others.add_param_group({"params": [*new.values()]})  # the advice
    trained = {p for o in (muon, others) for g in o.param_groups for p in g["params"]}
    assert trained == {*model.parameters()}
    trained_by = ["1.weight", *(n for n in new if n.endswith("prompts"))]
    before = {n: model.get_parameter(n).detach().clone() for n in trained_by}
    step(model, muon, others)
    assert not any(torch.equal(model.get_parameter(n), before[n]) for n in trained_by)
    with kanmeta.carry_optimizer(others, model) as carried:
        kanmeta.materialize(model)
    step(model, muon, others)


class Named(torch.optim.SGD):
    """Somebody else's Muon."""


Named.__name__ = "Muon"


class Derived(getattr(torch.optim, "Muon", Named)):  # type: ignore[misc]
    """Made of torch's."""


def split(model: nn.Module, part: str) -> list[nn.Parameter]:
    return [p for n, p in model.named_parameters() if part in n]


def trained_once(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Each Parameter that can be trained is in one group of one optimiser, nothing else is."""
    held = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("swapped", [False, True])
def test_what_two_optimisers_had_split_is_trained_by_one_of_them(swapped: bool) -> None:
    model = KAN(SIZES)
    first = torch.optim.Adam(split(model, "base_weight"))  # the first tensor of a layer
    second = torch.optim.SGD(split(model, "spline"), lr=0.1, momentum=0.9)
    trained_once(model, first, second)
    step(model, first, second)
    outer, inner = (second, first) if swapped else (first, second)
    with kanmeta.carry_optimizer(outer, model) as a, kanmeta.carry_optimizer(inner, model) as b:
        convert(model)
    trained_once(model, first, second)
    of_first, of_second = (b, a) if swapped else (a, b)
    assert {*of_first.reset} == {n for n, _ in model.named_parameters()}
    assert of_second.reset == ()
    assert of_second.left_out == of_first.reset
    step(model, first, second)
    with kanmeta.carry_optimizer(outer, model), kanmeta.carry_optimizer(inner, model):
        kanmeta.materialize(model)
    trained_once(model, first, second)
    assert not second.param_groups[0]["params"]


def test_a_meta_learner_of_layers_with_an_optimiser_each_is_trained_once() -> None:
    model = KAN(SIZES)
    one, two = (torch.optim.Adam(split(model, f"layers.{i}.")) for i in range(2))
    with kanmeta.carry_optimizer(one, model), kanmeta.carry_optimizer(two, model) as carried:
        convert(model)
    trained_once(model, one, two)
    assert carried.reset == ("layers.1.prompts",)
    with kanmeta.carry_optimizer(one, model) as alone:  # the other one is none of its time
        kanmeta.materialize(model)
    assert {*alone.reset} == {n for n, _ in model.named_parameters() if "layers.0." in n}


@pytest.mark.parametrize("kind", [Named, Derived])
def test_muon_leaves_prompts_to_what_is_carried_with_it(kind: Any) -> None:
    model = KAN(SIZES)
    muon = kind(split(model, "base_weight"), lr=0.01)
    adam = torch.optim.Adam(split(model, "spline"))
    with kanmeta.carry_optimizer(muon, model) as carried, kanmeta.carry_optimizer(adam, model):
        convert(model)
    trained_once(model, adam)
    assert {*carried.left_out} == {n for n, _ in model.named_parameters()}
    model = KAN(SIZES)
    muon = kind(split(model, "base_weight"), lr=0.01)
    only = pytest.warns(UserWarning, match="trains matrices only")
    with only, kanmeta.carry_optimizer(muon, model) as carried:  # alone
        convert(model)
    assert carried.reset == ()


def test_an_optimiser_whose_block_ended_before_the_change_takes_nothing() -> None:
    """An inner block whose conversion failed: the outer optimiser trains what is new."""
    model = KAN(SIZES)
    first, second = (torch.optim.Adam(layer.parameters()) for layer in model.layers)
    everything = torch.optim.SGD(model.parameters(), lr=0.1)
    with kanmeta.carry_optimizer(everything, model) as carried:
        for inner in (first, second):
            with pytest.raises(errors.PlanError), kanmeta.carry_optimizer(inner, model):
                kanmeta.convert(model, dim_z=0)
        kanmeta.convert(model)
    assert set(everything.param_groups[0]["params"]) == set(model.parameters())
    assert "layers.0.prompts" in carried.reset


def test_what_the_user_has_added_in_the_block_is_not_added_again() -> None:
    model = KAN(SIZES)
    optimizer = torch.optim.Adam(model.parameters())
    with kanmeta.carry_optimizer(optimizer, model):
        kanmeta.convert(model)
        optimizer.add_param_group({"params": [*kanmeta.prompts(model).values()], "lr": 0.1})
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(model.parameters())
