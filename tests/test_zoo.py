"""Real models of other people's repositories: convert, train one step, store, load, materialize."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import LargerModelWarning, SkippedLayerWarning
from tests import zoo_forks, zoo_libraries, zoo_networks, zoo_torch_conv_kan
from tests.zoo import Model, tensors

ZOO = [
    *zoo_torch_conv_kan.MODELS,
    *zoo_libraries.MODELS,
    *zoo_networks.MODELS,
    *zoo_forks.MODELS,
]


@pytest.mark.filterwarnings("ignore")  # some libraries warn; kanmeta's own are looked at below
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_a_real_model(entry: Model, tmp_path: Any) -> None:
    model = entry.build()
    plan = kanmeta.plan(model, edge=entry.edge, adapters=entry.adapters)
    _check_plan(model, plan, entry)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        kanmeta.convert(model, edge=entry.edge, adapters=entry.adapters)
    ours = [w for w in seen if issubclass(w.category, SkippedLayerWarning)]
    assert len(ours) == entry.skipped
    assert all(issubclass(w.category, SkippedLayerWarning | LargerModelWarning) for w in seen)

    before = {name: z.detach().clone() for name, z in kanmeta.prompts(model).items()}
    assert len(before) == entry.layers
    _train_one_step(model, entry)
    idle = {n for n, z in kanmeta.prompts(model).items() if torch.equal(z, before[n])}
    assert all(map(entry.is_idle, idle)), idle
    assert idle != set(before)

    expected = _outputs(model, entry)
    assert all(y.isfinite().all() for y in expected)
    file = tmp_path / "model.safetensors"
    kanmeta.save(model, file)
    torch.manual_seed(1)  # another model than the one that was saved
    fresh = entry.build()
    assert not _equal(_outputs(fresh, entry), expected)
    loaded = kanmeta.load(fresh, file, adapters=entry.adapters)
    assert _equal(_outputs(loaded, entry), expected)

    # Layers that run in tiles add up in another order than the library's own.
    whole = _outputs(kanmeta.set_execution(loaded, "materialize"), entry)
    kanmeta.materialize(loaded)
    assert _equal(_outputs(loaded, entry), whole)
    theirs = entry.build()  # the library's own model takes what was materialized, and agrees
    assert [type(m) for m in loaded.modules()] == [type(m) for m in theirs.modules()]
    for parameter in theirs.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    theirs.load_state_dict(loaded.state_dict())
    assert _equal(_outputs(theirs, entry), whole)

    if entry.copies:
        twin = copy.deepcopy(model)
        assert _equal(_outputs(kanmeta.materialize(twin), entry), whole)
        assert _equal(_outputs(model, entry), expected)


def _check_plan(model: nn.Module, plan: kanmeta.Plan, entry: Model) -> None:
    assert len(plan.layers) == entry.layers, str(plan)
    assert len(plan.skipped) == entry.skipped, str(plan)
    assert plan.order_source == entry.order
    # No layer of a class that is converted is forgotten.
    classes = {layer.spec.class_name for layer in plan.layers}
    planned = {model.get_submodule(layer.name) for layer in plan.layers}
    same = {module for module in model.modules() if type(module).__name__ in classes}
    assert planned <= same
    assert len(same - planned) <= entry.skipped


def _train_one_step(model: nn.Module, entry: Model) -> None:
    model.train()
    optimiser = torch.optim.AdamW(kanmeta.param_groups(model, lr=1e-3, prompt_lr=1e-2))
    generator = torch.Generator().manual_seed(3)
    loss = torch.zeros(())
    for y in tensors(entry.run(model)):
        loss = loss + (y - torch.randn(y.shape, generator=generator)).square().mean()
    assert loss.isfinite()
    loss.backward()
    optimiser.step()


@torch.no_grad()
def _outputs(model: nn.Module, entry: Model) -> list[Tensor]:
    model.eval()
    torch.manual_seed(2)  # some forwards draw numbers in evaluation mode, too
    return [y.clone() for y in tensors(entry.run(model))]


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))
