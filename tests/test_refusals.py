"""What refuses to be converted, and that a failed call leaves the model bit-identical."""

import copy
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import kanmeta
from kanmeta import errors, initialise
from recipes.reference.efficient_kan import KANLinear
from tests.cases import case, kan, linear, same_state


def test_tied_coefficients_of_two_layers_are_refused() -> None:
    model = nn.Sequential(linear(4, 4), linear(4, 4))
    model[1].spline_weight = model[0].spline_weight
    with pytest.raises(errors.PlanError, match="untie"):
        kanmeta.convert(model)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "compiled part": lambda m: nn.Sequential(torch.compile(m)),
    "DataParallel": nn.DataParallel,
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrapped_models_are_refused_and_the_advice_helps(wrap: str) -> None:
    inside = kan(20, 30, 10)
    with pytest.raises(errors.WrappedModelError, match=r"Convert the module .* then wrap it again"):
        kanmeta.convert(WRAPPED[wrap](inside))
    kanmeta.convert(inside)
    WRAPPED[wrap](inside)


def test_compiled_in_place_and_scripted_are_refused() -> None:
    model = kan(20, 30, 10)
    model.compile()
    with pytest.raises(errors.WrappedModelError, match=r"\.compile\(\) was not called"):
        kanmeta.convert(model)
    kanmeta.convert(kan(20, 30, 10)).compile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2))
    with pytest.raises(errors.WrappedModelError, match="Convert the Python module"):
        kanmeta.convert(nn.Sequential(scripted, kan(20, 30)))
    kanmeta.convert(nn.Sequential(nn.Linear(2, 2), kan(20, 30)))


def test_ddp_is_refused_and_ddp_around_a_converted_model_trains(tmp_path) -> None:
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = kan(20, 30, 10)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(errors.WrappedModelError, match="parallel"):
            kanmeta.convert(wrapped)
        kanmeta.convert(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped(torch.rand(4, 20)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        distributed.destroy_process_group()


BAD_ARGUMENTS = {
    "dim_z": {"dim_z": 0},
    "dim_z bool": {"dim_z": True},
    "hidden": {"hidden": 2.5},
    "activation": {"activation": "swish"},
    "edge": {"edge": "kernel"},
    "init": {"init": "zeros"},
    "execution": {"execution": "magic"},
    "bias": {"bias": "yes"},
    "clusters": {"clusters": 0},
    "clusters text": {"clusters": "one"},
    "clusters unknown layer": {"clusters": [["layers.0", "layers.7"]]},
    "clusters incomplete": {"clusters": {"layers.0": 0}},
    "clusters twice": {"clusters": [["layers.0", "layers.1"], ["layers.0"]]},
    "include": {"include": "encoder.*"},
    "exclude all": {"exclude": "*"},
    "generator": {"generator": None},  # replaced below
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_leave_the_model_bit_identical(name: str) -> None:
    model = kan(20, 30, 10)
    state = copy.deepcopy(model.state_dict())
    kwargs = dict(BAD_ARGUMENTS[name])
    if name == "generator":
        kwargs["generator"] = type("Cuda", (), {"device": torch.device("cuda")})()
    rng = torch.get_rng_state()
    with pytest.raises(errors.PlanError):
        kanmeta.convert(model, **kwargs)
    assert same_state(model, state)
    assert torch.equal(torch.get_rng_state(), rng)
    assert type(model.layers[0]) is KANLinear


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_failure_in_the_middle_of_surgery_is_undone(
    fail_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = case("fast-kan-base-norm").model(), case("fast-kan-base-norm").x()
    state, y = copy.deepcopy(model.state_dict()), model(x)
    classes = [type(m) for m in model.modules()]
    original, calls = nn.Module.register_buffer, []

    def failing(self: nn.Module, name: str, *args: object, **kwargs: object) -> None:
        calls.append(name)
        if len(calls) > fail_at:
            raise MemoryError("out of memory")
        original(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "register_buffer", failing)
        with pytest.raises(MemoryError):
            kanmeta.convert(model, hidden=3)
    assert len(calls) == fail_at + 1
    assert same_state(model, state)
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(model(x), y)
    assert not any("_kanmeta" in m.__dict__ for m in model.modules())


def test_a_failure_while_drawing_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = kan(20, 30, 10)
    state = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(initialise, "draw", lambda *a: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        kanmeta.convert(model)
    assert same_state(model, state)


def test_attribute_clash_meta_device_and_odd_tensors_are_refused() -> None:
    clash = linear(4, 4)
    clash.prompts = "mine"
    meta = linear(4, 4).to("meta")
    quantised = linear(4, 4)
    quantised.spline_weight = type("Quantised", (nn.Parameter,), {})(torch.zeros(4, 4, 8))
    for layer, text in ((clash, "prompts"), (meta, "meta device"), (quantised, "Quantised")):
        with pytest.raises(errors.PlanError, match=text):
            kanmeta.convert(layer)


class Regularised(nn.Module):
    """Keeps a layer's Parameters in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kan = linear(20, 30)
        self.penalised = nn.ParameterList([self.kan.spline_weight])


def test_tied_to_something_outside_the_layers_is_refused() -> None:
    tied = nn.ModuleDict({"kan": linear(20, 30), "head": nn.Linear(20, 30, bias=False)})
    tied["head"].weight = tied["kan"].base_weight
    excluded = nn.Sequential(linear(20, 20), linear(20, 20))
    excluded[1].base_weight = excluded[0].base_weight
    for model, kwargs in ((tied, {}), (Regularised(), {}), (excluded, {"exclude": "1"})):
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(errors.PlanError, match="untie"):
            kanmeta.convert(model, **kwargs)
        assert same_state(model, state)


def test_a_filter_that_leaves_nothing_names_what_it_left_out() -> None:
    with pytest.raises(errors.NothingToConvertError, match=r"Left out by .* layers\.0, layers\.1"):
        kanmeta.convert(kan(20, 30, 10), exclude="*")


@pytest.mark.parametrize("clusters", [1, "layer"])
def test_the_break_even_is_true(clusters: object) -> None:
    """A layer with as many edges as the warning asks for gets smaller, one with fewer does not."""
    with pytest.warns(errors.LargerModelWarning, match="pays from") as caught:
        kanmeta.convert(nn.Sequential(KANLinear(3, 4)), clusters=clusters)
    enough = int(re.search(r"from (\d+) edges", str(caught[0].message)).group(1))
    planned = kanmeta.plan(KANLinear(1, enough))
    assert planned.parameters_after < planned.parameters_before
    one_less = kanmeta.plan(KANLinear(1, enough - 1))
    assert one_less.parameters_after >= one_less.parameters_before
