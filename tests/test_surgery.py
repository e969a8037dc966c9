"""Where layers sit, how often they are used, who owns the meta-learner, what moves."""

import copy
import io
import threading

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from recipes.reference.efficient_kan import KANLinear
from recipes.reference.fast_kan import FastKANLayer
from tests.cases import kan, linear


def test_root_may_be_a_layer() -> None:
    layer, x = linear(40, 30), torch.rand(5, 40)
    assert kanmeta.convert(layer) is layer
    assert isinstance(layer, KANLinear)
    assert list(kanmeta.prompts(layer)) == [""]
    y = layer(x)
    y.sum().backward()
    assert kanmeta.meta_learners(layer)[""].weight1.grad is not None
    assert "(root)" in str(kanmeta.summary(layer))
    with pytest.raises(errors.AlreadyConvertedError, match=r"\(root\)"):
        kanmeta.convert(layer)
    kanmeta.materialize(layer)
    torch.testing.assert_close(layer(x), y)
    assert type(layer) is KANLinear


@pytest.mark.parametrize("container", [nn.Sequential, nn.ModuleList])
def test_root_may_be_a_container_whose_children_are_called(container: type) -> None:
    layers = [linear(20, 30), linear(30, 10)]
    model = container(*layers) if container is nn.Sequential else container(layers)
    kanmeta.convert(model)
    assert len(model) == 2
    x = torch.rand(3, 20)
    for child in model:
        x = child(x)
    assert x.shape == (3, 10)


class CallsItsChildren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = linear(20, 30)
        self.second = linear(30, 10)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():  # a module added here would be called
            x = child(x)
        return x


def test_modules_that_are_not_kan_layers_are_not_touched() -> None:
    model = CallsItsChildren()
    outside = dict(model.__dict__), list(model._modules.items())
    kanmeta.convert(model)
    assert (dict(model.__dict__), list(model._modules.items())) == outside
    assert model(torch.rand(3, 20)).shape == (3, 10)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear(12, 12)
        self.again = self.layer

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.layer(x))


def test_a_layer_used_twice_is_one_layer() -> None:
    model = Twice()
    planned = kanmeta.plan(model)
    assert [(p.name, p.aliases) for p in planned.layers] == [("layer", ("again",))]
    kanmeta.convert(model)
    assert model.layer is model.again
    assert sum(p.numel() for p in model.parameters()) == planned.parameters_after
    y = model(torch.rand(2, 12))
    y.sum().backward()
    assert model.layer.prompts.grad is not None
    kanmeta.materialize(model)
    assert model.layer is model.again


def test_vision_transformer_with_kan_mlps_converts() -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2
        )
    for block in vit.blocks:
        block.mlp.fc1, block.mlp.fc2 = FastKANLayer(24, 48), FastKANLayer(48, 24)
    x = torch.rand(2, 3, 32, 32)
    planned = kanmeta.plan(vit)
    assert len(planned.layers) == 4
    kanmeta.convert(vit)
    y = vit(x)
    y.sum().backward()
    assert all(z.grad is not None for z in kanmeta.prompts(vit).values())
    vit.eval()
    expected = vit(x)
    kanmeta.materialize(vit)
    torch.testing.assert_close(vit(x), expected)


def test_frozen_coefficients_stay_frozen() -> None:
    model = kan(20, 30, 10).requires_grad_(False)
    kanmeta.convert(model)
    assert not any(p.requires_grad for p in model.parameters())
    kanmeta.materialize(model)
    assert not any(p.requires_grad for p in model.parameters())
    model = kan(20, 30, 10)
    model.layers[0].base_weight.requires_grad_(False)
    planned = kanmeta.plan(model, clusters="layer")
    assert [p.spec.dim_w for p in planned.layers] == [8, 9]


def test_materializing_the_owner_hands_the_meta_learner_on() -> None:
    model, x = nn.Sequential(linear(20, 30), linear(30, 20), linear(20, 10)), torch.rand(2, 20)
    kanmeta.convert(model)
    y, (meta,) = model(x), kanmeta.meta_learners(model).values()
    kanmeta.materialize(model[0])
    assert torch.equal(model(x), y)
    assert kanmeta.meta_learners(model) == {"1": meta}
    assert set(kanmeta.prompts(model)) == {"1", "2"}
    kanmeta.materialize(model)
    assert torch.equal(model(x), y)
    with pytest.raises(errors.NothingToConvertError, match=r"kanmeta\.convert"):
        kanmeta.materialize(model)


def test_a_layer_can_be_read_and_materialized_without_the_owner() -> None:
    model, x = nn.Sequential(linear(20, 30), linear(30, 20)), torch.rand(2, 20)
    kanmeta.convert(model)
    y = model(x)
    assert kanmeta.coefficients(model[1])[""].shape == (20, 30, 9)
    kanmeta.materialize(model[1])
    torch.testing.assert_close(model(x), y)
    assert set(kanmeta.meta_learners(model)) == {"0"}


def test_a_lost_meta_learner_is_noticed() -> None:
    model = nn.Sequential(linear(20, 30), linear(30, 10))
    kanmeta.convert(model)
    model[0] = nn.Linear(20, 30)
    for use in (
        lambda: kanmeta.param_groups(model, lr=1e-3),
        lambda: kanmeta.save(model, "never-written.safetensors"),
        lambda: kanmeta.meta_learners(model),
    ):
        with pytest.raises(errors.SharingError, match="materialize"):
            use()


def test_partial_conversion() -> None:
    model = kan(20, 30, 40, 10)
    kanmeta.convert(model, include="layers.0")
    assert set(kanmeta.prompts(model)) == {"layers.0"}
    kanmeta.convert(model, exclude=["layers.0"], dim_z=2)
    assert [z.shape[-1] for z in kanmeta.prompts(model).values()] == [1, 2, 2]
    assert len(kanmeta.meta_learners(model)) == 2
    with pytest.raises(errors.PlanError, match="Did you mean 'layers'"):
        kanmeta.plan(kan(20, 10), include="layer")
    by_predicate = kanmeta.plan(kan(20, 30, 10), include=lambda name, layer: name.endswith("1"))
    assert [p.name for p in by_predicate.layers] == ["layers.1"]
    below = kanmeta.plan(nn.ModuleDict({"a": kan(20, 30), "b": kan(20, 30)}), include="a")
    assert [p.name for p in below.layers] == ["a.layers.0"]


def test_two_threads_do_not_share_generated_tensors() -> None:
    """One trains, one evaluates the same layer: both are inside forward at the same time."""
    layer, x = linear(20, 30), torch.rand(8, 20)
    kanmeta.convert(layer)
    parameters = list(layer.parameters())
    expected = torch.autograd.grad(layer(x).square().sum(), parameters)
    inside, both = threading.Event(), threading.Barrier(2, timeout=30)

    class Meet(nn.Module):  # called after the spline weights are read, before the base weights are
        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            both.wait()
            return nn.functional.silu(x)

    layer.base_activation = Meet()
    results: dict[str, object] = {}

    def evaluate() -> None:
        inside.wait(timeout=30)  # the training thread has generated its tensors already
        with torch.no_grad():
            results["evaluated"] = layer(x)

    thread = threading.Thread(target=evaluate)
    thread.start()
    grads = torch.autograd.grad(layer(x).square().sum(), parameters)
    thread.join()
    assert isinstance(results["evaluated"], Tensor)
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_optimisers_move_prompts_and_meta_learners() -> None:
    model, x = kan(20, 30, 10), torch.rand(64, 20)
    model.head = nn.Linear(3, 3)
    kanmeta.convert(model)
    groups = kanmeta.param_groups(model, lr=0.1, prompt_lr=0.2, meta_lr=0.3, weight_decay=0.4)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("prompts", 0.2, 0.4),
        ("meta_learners", 0.3, 0.4),
        ("other", 0.1, 0.4),
    ]
    grouped = [p for g in groups for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))
    optimiser = torch.optim.AdamW(kanmeta.param_groups(model, lr=3e-2))
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (model(x) - x[:, :10]).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_converted_class_builds_the_librarys_own_layer() -> None:
    layer = kanmeta.convert(linear(20, 30))
    built = type(layer)(4, 5)
    assert type(built) is KANLinear
    assert built(torch.rand(2, 4)).shape == (2, 5)


def test_a_copy_of_one_layer_does_not_drag_the_others_along() -> None:
    model = nn.Sequential(linear(20, 300), linear(300, 300), linear(300, 10))
    kanmeta.convert(model)
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(model[2]), buffer)
    assert buffer.tell() < 4 * (3000 + 12 * 300) + 20_000
    assert len(kanmeta.meta_learners(copy.deepcopy(model))["0"].bindings) == 3


def test_another_meta_learner_is_refused() -> None:
    model = kanmeta.convert(nn.Sequential(linear(20, 30), linear(30, 10)))
    for layer in model:
        with pytest.raises(errors.SharingError, match="materialize"):
            layer.meta_learner = kanmeta.MetaLearner(1, 4, 9)


def test_under_a_default_device() -> None:
    layer = linear(20, 30)
    with torch.device("meta"):
        kanmeta.convert(layer)
    assert layer(torch.rand(2, 20)).shape == (2, 30)


class Moves(KANLinear):
    """Brings its weights to the input's device in every pass, as some libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        self.spline_weight = self.spline_weight.to(x.device)
        return super().forward(x)


def test_assigning_back_what_was_read_changes_nothing() -> None:
    layer = Moves(20, 30)
    kanmeta.convert(layer)
    layer(torch.rand(3, 20)).sum().backward()
    assert layer.prompts.grad.abs().sum() > 0
    with pytest.raises(errors.CoefficientWriteError):
        layer.spline_weight = layer.spline_weight * 2
