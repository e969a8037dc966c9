"""Mixtures, attention and focal modulation need no adapter: their layers are found one by one.

On the real classes of torch-conv-kan, and on small ones of the reference layers.
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import LargerModelWarning, SkippedLayerWarning
from recipes.reference.conv_gram import KAGNConv2DLayer, KAGNConv2DLayerV2
from recipes.reference.conv_gram_bottleneck import BottleNeckKAGNConv2DLayer, KAGNExpert
from tests import upstream

LAYER = re.compile(r"(BottleNeck)?(KALN|KACN|KAGN|KAN|FastKAN|WavKAN|ReLUKAN)Conv\dDLayer")
ALONE = {"KAGNExpert", "GRAMLayer"}


class Mixture(nn.Module):
    """Every expert, weighted by a gate that sees the mean over pixels; and one bare expert."""

    def __init__(self, channels: int, experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            KAGNConv2DLayer(channels, channels, 3, degree=2, padding=1) for _ in range(experts)
        )
        self.bare = KAGNExpert(nn.functional.conv2d, channels, channels, 2, 1)
        self.w_gate = nn.Parameter(torch.zeros(channels, experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = torch.softmax(x.mean((2, 3)) @ self.w_gate, dim=1)
        each = torch.stack([expert(x) for expert in self.experts], dim=1)
        y = torch.einsum("ne,nechw->nchw", gates, each) + self.bare(x)
        return y, gates.sum(0).var()


class Attention(nn.Module):
    """Pixels attend to each other; keys, queries and values are bottlenecks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_k, self.proj_q, self.proj_v = (
            BottleNeckKAGNConv2DLayer(channels, channels, 1, degree=2) for _ in range(3)
        )
        self.gamma = nn.Parameter(torch.zeros(1))
        self.norm_layer = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (proj(x).flatten(2) for proj in (self.proj_q, self.proj_k, self.proj_v))
        weights = torch.softmax(torch.einsum("ncp,ncq->npq", q, k), dim=-1)
        return self.norm_layer(self.gamma * x + torch.einsum("npq,ncq->ncp", weights, v).view_as(x))


class Modulation(nn.Module):
    """A depthwise context, which cannot be converted, times a query."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = KAGNConv2DLayer(channels, 2 * channels, 1, degree=2)
        self.focal_layers = nn.ModuleList(
            KAGNConv2DLayerV2(channels, channels, 3, degree=2, groups=channels, padding=1)
            for _ in range(2)
        )
        self.proj = KAGNConv2DLayer(channels, channels, 1, degree=2)

    def forward(self, x: Tensor) -> Tensor:
        q, context = self.f(x).chunk(2, dim=1)
        for layer in self.focal_layers:
            context = layer(context)
        self.gates = context  # an attribute that is no leaf, as in the library
        return self.proj(q * context)


@dataclass(frozen=True)
class Container:
    """How to build one, and the shape of its input."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (4, 5, 5)

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build()
            for name, parameter in model.named_parameters():
                # The library's ReLU-KAN repeats a few numbers, into which nothing can be loaded.
                parameter.data = parameter.data.contiguous()
                if name.endswith("w_gate"):  # zero at first, so nothing before it is trained
                    nn.init.normal_(parameter)
            return model

    def x(self) -> Tensor:
        return torch.randn(6, *self.shape, generator=torch.Generator().manual_seed(2))


def _real(name: str, *args: Any, shape: tuple[int, ...] = (4, 5, 5), **kwargs: Any) -> Container:
    return Container(
        f"upstream-{name}{'-pregate' if kwargs.get('pregate') else ''}",
        lambda: getattr(upstream.torch_conv_kan("kan_convs"), name)(*args, **kwargs),
        shape,
    )


TWO = {"num_experts": 2, "k": 2, "kernel_size": 3, "padding": 1}
SAME = {"kernel_size": 3, "padding": 1}
CONTAINERS = [
    Container("mixture", lambda: Mixture(4, 2)),
    Container("attention", lambda: Attention(4)),
    Container("modulation", lambda: Modulation(4)),
    *(
        _real(f"MoE{kind}Conv2DLayer", 4, 4, **TWO)
        for kind in ("KALN", "KAGN", "KACN", "KAN", "FastKAN", "WavKAN", "FullBottleneckKAGN")
    ),
    _real("MoEKAGNConv1DLayer", 4, 4, **TWO, shape=(4, 6)),
    _real("MoEKAGNConv3DLayer", 4, 4, **TWO, shape=(4, 3, 3, 3)),
    _real("MoEBottleNeckKAGNConv2DLayer", 4, 4, **TWO, groups=2),
    _real("MoEBottleNeckKAGNConv2DLayer", 4, 4, **TWO, pregate=True),
    _real("SelfKAGNtention1D", 4, **SAME, shape=(4, 6)),
    _real("SelfKAGNtention2D", 4, inner_projection=2, **SAME),
    _real("SelfKAGNtention3D", 4, **SAME, shape=(4, 3, 3, 3)),
    _real("BottleNeckSelfKAGNtention2D", 4, **SAME),
    _real("SelfReLUKANtention2D", 4, **SAME),
    _real("BottleNeckSelfReLUKANtention2D", 4, **SAME),
    _real("RoPEBottleNeckSelfKAGNtention1D", 4, **SAME, shape=(4, 10)),
    _real("RoPEBottleNeckSelfKAGNtention2D", 4, **SAME, shape=(4, 2, 5)),
    *(
        _real(f"{kind}KAGNFocalModulation{ndim}D", 4, shape=shape)
        for kind in ("", "BottleNeck")
        for ndim, shape in ((1, (4, 6)), (2, (4, 5, 5)), (3, (4, 3, 3, 3)))
    ),
]

each_container = pytest.mark.parametrize("container", CONTAINERS, ids=lambda c: c.name)
as_upstream = pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast:FutureWarning")


def parts(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the layers to be found, and of those to be left, by their classes' names."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    wanted = {n for n, kind in kinds.items() if LAYER.fullmatch(kind) or kind in ALONE}
    return wanted, {n for n, kind in kinds.items() if kind.endswith("V2")}


@contextmanager
def tiny(left: set[str]) -> Iterator[None]:
    """Expect the warning about layers that are left, and none else but that all is small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LargerModelWarning)
        if left:
            with pytest.warns(SkippedLayerWarning, match="belongs to no edge"):
                yield
        else:
            yield


def converted(container: Container, seed: int = 0) -> nn.Module:
    model = container.model(seed)
    with tiny(parts(model)[1]):
        generator = torch.Generator().manual_seed(1)
        return kanmeta.convert(model, hidden=4, dim_z=2, generator=generator)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the loss that a mixture of experts adds."""
    y = model(x)
    return y if isinstance(y, tuple) else (y, y.new_zeros(()))


@as_upstream
@each_container
def test_every_part_is_found(container: Container) -> None:
    model = container.model()
    wanted, left = parts(model)
    assert len(wanted) >= 2
    planned = kanmeta.plan(model)
    assert {layer.name for layer in planned.layers} == wanted
    assert {text.partition(" ")[0] for text in planned.skipped} == left
    converted_model = converted(container)
    assert set(kanmeta.prompts(converted_model)) == wanted


@as_upstream
@each_container
def test_a_training_step_reaches_every_part(container: Container) -> None:
    model, x = converted(container), container.x()
    optimiser = torch.optim.SGD(kanmeta.param_groups(model, lr=1e-3))
    before = {name: z.detach().clone() for name, z in kanmeta.prompts(model).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the gates of a mixture are noisy
        y, extra = run(model, x)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    ((y - target).square().mean() + extra).backward()
    optimiser.step()
    for name, z in kanmeta.prompts(model).items():
        assert z.grad is not None, name
        assert torch.isfinite(z).all(), name
        assert not torch.equal(z, before[name]), name
    for meta in kanmeta.meta_learners(model).values():
        assert all(p.grad.abs().sum() > 0 for p in meta.parameters())


@as_upstream
@each_container
def test_materialize_gives_the_library_back(container: Container) -> None:
    model, x = converted(container).eval(), container.x()
    names = list(container.model().state_dict())
    kinds = [type(module) for module in container.model().modules()]
    with torch.no_grad():
        expected = run(model, x)[0].clone()
    kanmeta.materialize(model)
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == names
    with torch.no_grad():
        assert torch.equal(run(model, x)[0], expected)
    fresh = container.model(seed=7).eval()
    with torch.no_grad():
        assert not torch.allclose(run(fresh, x)[0], expected)
        fresh.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(run(fresh, x)[0], expected)


@as_upstream
@each_container
def test_save_and_load(container: Container, tmp_path: Path) -> None:
    model, x = converted(container).eval(), container.x()
    with torch.no_grad():
        expected = run(model, x)[0].clone()
    kanmeta.save(model, tmp_path / "model.safetensors")
    fresh = container.model(seed=7)
    state = copy.deepcopy(fresh.state_dict())
    loaded = kanmeta.load(fresh, tmp_path / "model.safetensors").eval()
    assert set(loaded.state_dict()) != set(state)
    with torch.no_grad():
        assert torch.equal(run(loaded, x)[0], expected)
