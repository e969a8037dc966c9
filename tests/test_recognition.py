"""Recognition that cannot mistake: what is no KAN gives no hit, what looks alike is told apart."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import kanmeta
from kanmeta import errors, registry
from kanmeta.discovery import find_layers
from kanmeta.spec import LayerSpec
from recipes.reference import (
    conv_gram,
    conv_poly,
    efficient_kan,
    fast_kan,
    fc_spline,
    pykan_early,
    wav_kan,
)

TIMM = (
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "coatnet_0_224",
    "convnextv2_nano",
    "davit_tiny",
    "deit3_small_patch16_224",
    "densenet121",
    "edgenext_xx_small",
    "efficientnet_b0",
    "eva02_tiny_patch14_224",
    "focalnet_tiny_srf",
    "hrnet_w18_small",
    "levit_128s",
    "maxvit_tiny_tf_224",
    "mixer_s16_224",
    "mobilenetv3_small_100",
    "regnety_002",
    "swinv2_tiny_window8_256",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
)
TORCHVISION = (
    "convnext_tiny",
    "deeplabv3_resnet50",
    "efficientnet_b0",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fcn_resnet50",
    "maxvit_t",
    "mobilenet_v3_small",
    "mvit_v1_b",
    "r3d_18",
    "raft_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "ssd300_vgg16",
    "swin_t",
    "vit_b_16",
)
HAS_BACKBONE = ("deeplab", "fasterrcnn", "fcn", "ssd")


def _torchvision(name: str) -> nn.Module:
    no_weights = {"weights_backbone": None} if name.startswith(HAS_BACKBONE) else {}
    return torchvision.models.get_model(name, weights=None, **no_weights)


class BiasFree(nn.Linear):
    """A user's own linear layer: one tensor of two axes, as single-kan's."""

    def __init__(self) -> None:
        super().__init__(4, 4, bias=False)


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "Transformer": lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    "LSTM": lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    "GRU": lambda: nn.GRU(4, 5),
    "MultiheadAttention": lambda: nn.MultiheadAttention(8, 2),
    "Bilinear": lambda: nn.Bilinear(3, 4, 5),
    "norms": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(3), nn.PReLU()),
    "embedding": lambda: nn.Sequential(nn.Embedding(5, 4), nn.EmbeddingBag(5, 4)),
    "bias-free": BiasFree,
}
ORDINARY |= {f"timm-{name}": lambda n=name: timm.create_model(n) for name in TIMM}
ORDINARY |= {f"torchvision-{name}": lambda n=name: _torchvision(n) for name in TORCHVISION}


def _no_hit(model: nn.Module) -> None:
    adapters = registry.all_adapters()
    for name, module in model.named_modules():
        assert registry.recognise(module, adapters) == (None, []), name
        assert list(registry.lookalikes(module, adapters)) == [], name
    with pytest.raises(errors.NothingToConvertError) as error:
        find_layers(model, adapters, "tap", None, None)
    assert "look like KAN layers" not in str(error.value)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_networks_give_no_hit(name: str) -> None:
    with torch.device("meta"):
        _no_hit(ORDINARY[name]())


@pytest.mark.parametrize("name", ["Bert", "GPT2", "Llama", "T5", "ViT"])
def test_transformers_give_no_hit(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with torch.device("meta"):
        _no_hit(getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")()))


class Holder(nn.Module):
    """Tensors under the names that a layer of a library has; for recognition only."""

    def __init__(self, **tensors: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in tensors.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


def _holder(name: str, methods: tuple[str, ...] = (), **tensors: tuple[int, ...]) -> Holder:
    return type(name, (Holder,), {m: lambda self: None for m in methods})(**tensors)


def _kanx(inputs: int, outputs: int, intervals: int = 5, order: int = 3) -> Holder:
    layer = _holder(
        "KANLinear",
        base_weight=(inputs, outputs),
        spline_weight=(inputs, outputs, intervals + order),
    )
    layer.spline_order = order
    layer.register_buffer("grid", torch.randn(inputs, intervals + 1))
    return layer


def _spec(layer: nn.Module) -> LayerSpec:
    spec, reasons = registry.recognise(layer, registry.all_adapters())
    assert spec is not None, reasons
    return spec


def _without_scaler(inputs: int, outputs: int) -> nn.Module:
    return efficient_kan.KANLinear(inputs, outputs, enable_standalone_scale_spline=False)


def test_wav_kan_and_the_layer_that_uses_its_dead_tensor() -> None:
    dead, used = wav_kan.KANLinear(4, 4), wav_kan.WavKANLayer(4, 4)
    shapes = [{n: p.shape for n, p in layer.named_parameters()} for layer in (dead, used)]
    assert shapes[0] == shapes[1]
    x = torch.randn(6, 4)
    for layer, reacts in ((dead, False), (used, True)):
        before = layer(x)
        nn.init.ones_(layer.weight1)
        assert torch.equal(layer(x), before) is not reacts
    assert (_spec(dead).dim_w, [*_spec(dead).dead]) == (3, ["weight1"])
    assert (_spec(used).dim_w, [*_spec(used).dead]) == (4, [])


@pytest.mark.parametrize("size", [(4, 4), (4, 3), (1, 1)])
def test_kanx_and_efficient_kan(size: tuple[int, int]) -> None:
    """The same names, and the same shapes where there are as many inputs as outputs."""
    theirs, other = _without_scaler(*size), _kanx(*size)
    for layer, name, layout in ((theirs, "efficient-kan", "o i k"), (other, "kanx", "i o k")):
        spec = _spec(layer)
        assert spec.adapter == name
        assert spec.edge_shape == size[::-1]
        w = spec.read(layer)
        o, i = size[1] - 1, 0
        index = {"o i k": (o, i), "i o k": (i, o)}[layout]
        assert torch.equal(w[o, i, 1:], layer.spline_weight[index])
    if size[0] == size[1]:
        assert theirs.spline_weight.shape == other.spline_weight.shape


def test_kanx_with_another_grid_is_neither() -> None:
    layer = _kanx(4, 4)
    layer.grid = torch.randn(4, 7)
    spec, reasons = registry.recognise(layer, registry.all_adapters())
    assert spec is None
    assert reasons


def test_convkan_and_efficient_kan() -> None:
    grouped = _holder("KANLinear", base_weight=(2, 5, 4), spline_weight=(2, 5, 4, 8))
    grouped.spline_order = 3
    grouped.register_buffer("grid", torch.randn(2, 4, 12))
    assert (_spec(grouped).adapter, _spec(grouped).edge_shape) == ("convkan", (2, 5, 4))
    assert _spec(efficient_kan.KANLinear(4, 5)).adapter == "efficient-kan"


def test_polynomial_convolutions_of_equal_tensors() -> None:
    legendre = conv_poly.KALNConv2DLayer(4, 4, 3, degree=2)
    jacobi = conv_poly.KAJNConv2DLayer(4, 4, 3, degree=2)
    shapes = [{n: p.shape for n, p in layer.named_parameters()} for layer in (legendre, jacobi)]
    assert shapes[0] == shapes[1]
    assert _spec(legendre).adapter != _spec(jacobi).adapter
    gram = conv_gram.KAGNConv2DLayer(4, 4, 3, degree=2)
    assert _spec(gram).adapter not in (_spec(legendre).adapter, _spec(jacobi).adapter)


def test_a_bernstein_convolution_has_the_tensors_of_a_legendre_one_and_is_refused() -> None:
    class KABNConvNDLayer(conv_poly.PolyConv):
        ndim = 2

        def bernstein_poly(self, x: Tensor) -> None:
            raise NotImplementedError

    layer = KABNConvNDLayer(4, 4, 3, degree=2)
    twin = conv_poly.KALNConv2DLayer(4, 4, 3, degree=2)
    assert {n: p.shape for n, p in layer.named_parameters()} == {
        n: p.shape for n, p in twin.named_parameters()
    }
    spec, reasons = registry.recognise(layer, registry.all_adapters())
    assert spec is None
    assert "basis is 1 everywhere" in reasons[-1]


def test_every_library_that_calls_its_layer_kan_layer() -> None:
    """Seven libraries; their tensors differ by one or two."""
    edges, splines = {"base_weight": (5, 4)}, {"spline_weight": (5, 4, 8)}
    flash = _holder("KANLayer", **edges, **splines)
    flash.register_buffer("grid_starts", torch.randn(8))
    packed = _holder("KANLayer", weight=(5, 4 * 8 + 4))
    packed.register_buffer("grid_starts", torch.randn(8))
    packed.dim = 1
    kolmarn = _holder("KANLayer", coeff=(5, 4, 8), bias=(5,))
    kolmarn.linear, kolmarn.basis = nn.Linear(4, 5), _holder("BSplineBasis", knots=(8,))
    on_edges = _holder("KANLayer", W1=(4, 5, 6, 7), W2=(4, 5, 1, 6), B1=(4, 5, 6), B2=(4, 5, 1))
    pykan = _holder(
        "KANLayer",
        coef=(4, 5, 8),
        scale_base=(4, 5),
        scale_sp=(4, 5),
        mask=(4, 5),
        grid=(4, 12),
    )
    pykan.k = 3
    drokin = fc_spline.KANLayer(4, 5)
    found = [
        _spec(layer).adapter
        for layer in (flash, packed, kolmarn, on_edges, pykan, drokin, pykan_early.KANLayer(4, 5))
    ]
    assert found[:5] == ["flashkan", "inkan", "kolmarn", "mlp_kan", "pykan"]
    assert found[6] == "pykan-early"
    assert len(set(found)) == 7
    assert all(_spec(layer).edge_shape == (5, 4) for layer in (flash, packed, kolmarn, drokin))
    del flash._buffers["grid_starts"]
    assert registry.recognise(flash, registry.all_adapters())[0] is None


class Louder(efficient_kan.KANLinear):
    """A user's subclass."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_subclass_is_recognised_and_keeps_its_forward() -> None:
    layer = Louder(30, 30)
    x = torch.rand(3, 30)
    model = kanmeta.convert(nn.Sequential(layer), hidden=2)
    y = model(x)
    assert type(layer).__name__ == "Louder"
    assert torch.equal(y, 2 * efficient_kan.KANLinear.forward(layer, x))


def _copied(file: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("original", "build", "adapter"),
    [
        (efficient_kan, lambda m: m.KANLinear(30, 30), "efficient-kan"),
        (fast_kan, lambda m: m.FastKANLayer(30, 30), "fast-kan"),
        (wav_kan, lambda m: m.WavKANLayer(30, 30), None),
    ],
)
def test_a_copied_file_is_recognised_under_any_module_path(
    original: ModuleType,
    build: Callable[[ModuleType], nn.Module],
    adapter: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = tmp_path / "layers.py"
    copied.write_text(Path(str(original.__file__)).read_text())
    layer = build(_copied(str(copied), "my_project.layers", monkeypatch))
    assert type(layer).__module__ == "my_project.layers"
    assert _spec(layer).adapter == (adapter or _spec(build(original)).adapter)
    kanmeta.convert(nn.Sequential(layer), hidden=2)
    assert layer.prompts.shape == (30, 30, 1)


def _renamed(inputs: int, outputs: int) -> nn.Module:
    """An efficient-kan layer of a class that has its methods, but not its name."""
    layer = _without_scaler(inputs, outputs)
    methods = {n: f for n, f in vars(type(layer)).items() if not n.startswith("__")}
    layer.__class__ = type("SplineDense", (nn.Module,), methods)
    return layer


def test_a_renamed_copy_is_not_converted_but_suggested() -> None:
    model = nn.Sequential(_renamed(30, 30))
    advice = r"adapters=\[kanmeta.adapter_for\('SplineDense', like='efficient-kan'\)\]"
    with pytest.raises(errors.NothingToConvertError, match=advice):
        kanmeta.convert(model)
    assert model(torch.rand(2, 30)).shape == (2, 30)


def test_a_layer_of_nobody_is_converted_by_an_adapter_of_its_own() -> None:
    class Cosines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.amplitude = nn.Parameter(torch.randn(30, 20, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            basis = torch.cos(x[..., None] * torch.arange(6))
            return torch.einsum("oik,nik->no", self.amplitude, basis)

    with pytest.raises(errors.NothingToConvertError) as raised:
        kanmeta.convert(Cosines())
    advice = "For a layer class of your own, pass adapters=[kanmeta.Adapter(...)]"
    assert advice in str(raised.value)
    slots = (kanmeta.Slot("amplitude", "o i k"),)
    mine = kanmeta.Adapter(name="cosines", class_names=("Cosines",), slots=slots)
    layer = kanmeta.convert(Cosines(), adapters=[mine])
    assert layer.prompts.shape == (30, 20, 1)
    assert layer(torch.rand(2, 20)).std() > 0


def test_a_renamed_copy_beside_known_layers_is_left_alone_with_a_warning() -> None:
    model = nn.Sequential(_without_scaler(30, 30), _renamed(30, 30))
    with pytest.warns(errors.SkippedLayerWarning, match="has the tensors of efficient-kan"):
        kanmeta.convert(model, hidden=2)
    assert list(kanmeta.prompts(model)) == ["0"]


def test_the_suggestions_advice_works() -> None:
    torch.manual_seed(0)
    mine = kanmeta.adapter_for("SplineDense", like="efficient-kan")
    model, x = nn.Sequential(_renamed(30, 30)), torch.rand(3, 30)
    before = model(x)
    kanmeta.convert(model, hidden=2, adapters=[mine])
    assert model[0].prompts.shape == (30, 30, 1)
    assert not torch.allclose(model(x), before)
    assert model(x).std() > 0


def test_a_renamed_copy_of_ambiguous_tensors_gets_every_suggestion() -> None:
    layer = wav_kan.WavKANLayer(4, 4)
    layer.__class__ = type("Wavelets", (nn.Module,), {})
    names = {adapter.name for adapter in registry.lookalikes(layer, registry.all_adapters())}
    assert {"wav-kan", _spec(wav_kan.WavKANLayer(4, 4)).adapter} == names


def test_adapter_for_an_unknown_adapter() -> None:
    with pytest.raises(errors.AdapterError, match="efficient-kan"):
        kanmeta.adapter_for("Mine", like="effcient-kan")
