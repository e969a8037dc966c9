"""Recognition: what is a known layer, what only looks like one, and adapters of one's own."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors, registry
from recipes.reference import efficient_kan
from recipes.reference.fast_kan import FastKANLayer


class KANLinear(nn.Module):
    """Names and shapes of kanx: input-major weights, a grid that is not extended."""

    def __init__(self) -> None:
        super().__init__()
        self.spline_order = 3
        self.base_weight = nn.Parameter(torch.zeros(4, 4))
        self.spline_weight = nn.Parameter(torch.zeros(4, 4, 8))
        self.register_buffer("grid", torch.zeros(4, 6))


class Subclass(efficient_kan.KANLinear):
    pass


class WithExtra(efficient_kan.KANLinear):
    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.temperature = nn.Parameter(torch.ones(()))


class ChebyKANLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cheby_coeffs = nn.Parameter(torch.zeros(4, 4, 5))


def test_subclasses_are_recognised_and_look_alikes_are_not() -> None:
    assert kanmeta.plan(Subclass(20, 30)).layers[0].spec.class_name == "Subclass"
    # The name and the tensors are efficient-kan's; a grid of G + 1 knots is kanx's.
    assert kanmeta.plan(KANLinear()).layers[0].spec.adapter == "kanx"
    with pytest.raises(errors.NothingToConvertError, match=r"has \['temperature'\] in addition"):
        kanmeta.plan(WithExtra(20, 30))
    mixed = nn.Sequential(Subclass(20, 30), WithExtra(30, 10))
    (skipped,) = kanmeta.plan(mixed).skipped
    assert skipped.startswith("1 (WithExtra): not ")
    assert "has ['temperature'] in addition" in skipped
    assert f"left as it is: {skipped}" in str(kanmeta.plan(mixed))
    with pytest.warns(errors.SkippedLayerWarning, match="temperature"):
        kanmeta.convert(mixed)


def test_nothing_to_convert_says_what_was_seen() -> None:
    with pytest.raises(errors.NothingToConvertError) as raised:
        kanmeta.convert(nn.Sequential(nn.Linear(3, 3), ChebyKANLayer()))
    for text in (
        "3 module(s)",
        "1: ChebyKANLayer",
        "efficient-kan (KANLinear)",
        "pykan",
        "Adapter",
    ):
        assert text in str(raised.value)
    with pytest.raises(errors.PlanError, match="Module"):
        kanmeta.convert(torch.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LSTM(4, 4),
        lambda: nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    ],
)
def test_ordinary_networks_have_no_hit(build: object) -> None:
    with pytest.raises(errors.NothingToConvertError) as raised:
        kanmeta.plan(build())  # type: ignore[operator]
    assert "look like" not in str(raised.value)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mixer_s32_224"])
def test_timm_models_have_no_hit(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]), pytest.raises(errors.NothingToConvertError):
        kanmeta.plan(timm.create_model(name))


class PolyLayer(nn.Module):
    """Somebody's private layer: y_o = sum_i sum_k c[k, i, o] x_i^k."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.randn(4, inputs, outputs) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nik,kio->no", x[..., None] ** torch.arange(4), self.c)


POLY = kanmeta.Adapter("poly", ("PolyLayer",), (kanmeta.Slot("c", "k i o"),))


@pytest.fixture
def clean_registry() -> Iterator[None]:
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


def test_a_private_layer_with_a_private_adapter() -> None:
    model, x = nn.Sequential(PolyLayer(20, 30), PolyLayer(30, 10)), torch.rand(4, 20)
    with pytest.raises(errors.NothingToConvertError):
        kanmeta.convert(model)
    kanmeta.convert(model, adapters=[POLY])
    y = model(x)
    y.sum().backward()
    kanmeta.materialize(model)
    torch.testing.assert_close(model(x), y)


@pytest.mark.usefixtures("clean_registry")
def test_registered_adapters_are_asked_before_built_in_ones() -> None:
    assert kanmeta.register_adapter(POLY) is POLY
    assert kanmeta.plan(PolyLayer(20, 30)).layers[0].spec.adapter == "poly"
    with pytest.raises(errors.AdapterError, match="Choose another name"):
        kanmeta.register_adapter(POLY)
    with pytest.raises(errors.AdapterError, match="efficient-kan"):
        kanmeta.register_adapter(kanmeta.Adapter("pykan", ("X",), (kanmeta.Slot("w", "o i k"),)))
    only_rbf = kanmeta.Adapter(
        "mine",
        ("FastKANLayer",),
        (kanmeta.Slot("spline_linear.weight", "o (i k)"),),
        plain={"rbf.grid": "k", "base_linear.weight": "o i", "base_linear.bias": "o"},
        optional_plain={"layernorm.weight": "i", "layernorm.bias": "i"},
    )
    kanmeta.register_adapter(only_rbf)
    assert kanmeta.plan(FastKANLayer(20, 30)).layers[0].spec.adapter == "mine"


def test_entry_points_are_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value = "poly", "somewhere:POLY"

        def __init__(self, target: object) -> None:
            self.target = target

        def load(self) -> object:
            return self.target

    def offer(*targets: object) -> None:
        registry._entry_points.cache_clear()
        monkeypatch.setattr(
            "importlib.metadata.entry_points", lambda group: [Point(t) for t in targets]
        )

    try:
        offer(POLY)
        assert kanmeta.plan(PolyLayer(20, 30)).layers[0].spec.adapter == "poly"
        assert registry.all_adapters()[-1] is POLY
        offer("not an adapter")
        with pytest.raises(errors.AdapterError, match="somewhere:POLY"):
            kanmeta.plan(PolyLayer(20, 30))
    finally:
        monkeypatch.undo()
        registry._entry_points.cache_clear()


def test_contradictory_adapters_are_refused() -> None:
    with pytest.raises(errors.AdapterError, match="always exists"):
        kanmeta.Adapter("a", ("A",), ())
    with pytest.raises(errors.AdapterError, match="lacks the edge axes"):
        kanmeta.Adapter("a", ("A",), (kanmeta.Slot("w", "o k"),))


class Network(nn.Module):
    """Holds KAN layers, but is none, whatever its name is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = efficient_kan.KANLinear(20, 30)


def test_a_network_with_a_layers_name_is_not_warned_of() -> None:
    named = type("KANLayer", (Network,), {})
    assert kanmeta.plan(nn.Sequential(named())).skipped == ()


class TaylorKANLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(30, 30, 4))


def test_an_unknown_kan_layer_beside_known_ones_is_named() -> None:
    mixed = nn.Sequential(efficient_kan.KANLinear(20, 30), TaylorKANLayer())
    (skipped,) = kanmeta.plan(mixed).skipped
    assert skipped.startswith("1 (TaylorKANLayer): no adapter knows this class")


FAULTY: dict[str, tuple[dict[str, object], str]] = {
    "bracket": ({"slots": (kanmeta.Slot("w", "o (i k"),)}, "is no layout"),
    "commas": ({"slots": (kanmeta.Slot("w", "o, i, k"),)}, "is no layout"),
    "one slot": ({"slots": kanmeta.Slot("w", "o i")}, "expected a tuple of Slot"),
    "names": ({"class_names": "Mine"}, "expected a tuple of str"),
    "twice": ({"slots": (kanmeta.Slot("w", "o i"), kanmeta.Slot("w", "o i"))}, "twice"),
    "slot and plain": ({"plain": {"w": "o i"}}, "twice"),
    "no name": ({"name": ""}, "name is a text"),
    "dead": ({"dead": {"v": "unused"}}, "not in plain"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_declaration_is_named(fault: str) -> None:
    arguments, text = FAULTY[fault]
    good = {"name": "mine", "class_names": ("Mine",), "slots": (kanmeta.Slot("w", "o i"),)}
    with pytest.raises(errors.AdapterError, match=text):
        kanmeta.Adapter(**(good | arguments))


@pytest.mark.parametrize("what", ["sizes", "check"])
def test_a_fault_in_an_adapters_function_is_reported_as_one(what: str) -> None:
    def fails(*args: object) -> None:
        raise KeyError("num_grids")

    adapter = kanmeta.Adapter(
        name="taylor",
        class_names=("TaylorKANLayer",),
        slots=(kanmeta.Slot("coefficients", "o i k"),),
        **{what: fails},
    )
    with pytest.raises(errors.AdapterError, match=f"{what} of adapter 'taylor' failed"):
        kanmeta.plan(TaylorKANLayer(), adapters=[adapter])
    with pytest.raises(errors.AdapterError, match="expected a list"):
        kanmeta.plan(TaylorKANLayer(), adapters=adapter)
    with pytest.raises(errors.AdapterError, match="expected a kanmeta"):
        kanmeta.register_adapter("taylor")
