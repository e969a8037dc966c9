"""Rows for the spline, RBF, wavelet and ReLU convolutions of torch-conv-kan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from recipes.reference import conv_fast_kan, conv_kan, conv_relu_kan, conv_wav_kan
from tests import upstream
from tests.case import Case


class ConvNet(nn.Module):
    """Two layers, and the mean over all pixels."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(2).mean(2)


def _nothing(layer: nn.Module) -> None:
    pass


def _draw_wavelets(layer: nn.Module) -> None:
    """Draw scale and translation around their constant start.

    In evaluation mode, because batch normalisation makes samples depend on each other.
    """
    layer.eval()
    for branch in layer.wavelet_conv:
        nn.init.normal_(branch.scale, 1, 0.1)
        nn.init.normal_(branch.translation, 0, 0.1)


def _unmix_wavelets(layer: nn.Module) -> None:
    for branch in layer.wavelet_conv:
        nn.init.dirac_(branch.wavelet_out.weight)


def _no_prelus(layer: nn.Module) -> None:
    layer.prelus = nn.ModuleList(nn.Identity() for _ in layer.prelus)


def _linear_outside(layer: nn.Module) -> None:
    layer.base_activation = nn.Identity()  # the library applies it to the sum of the edges, too


def _inner_edges_only(layer: nn.Module) -> None:
    """Make the inner channels those outside, and leave out the base branch."""
    _linear_outside(layer)
    for group in range(layer.groups):
        nn.init.zeros_(layer.base_conv[group].weight)
        nn.init.dirac_(layer.inner_proj[group].weight)
        nn.init.dirac_(layer.out_proj[group].weight)


@dataclass(frozen=True)
class Family:
    """A class of layers: where it is, options that make it small, its coefficients at one tap."""

    module: Any
    stem: str
    adapter: str
    width: int
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] = _nothing
    bare: Callable[[nn.Module], None] = _nothing
    pair_width: int = 0  # coefficients that all taps of a channel pair share
    ndims: tuple[int, ...] = (1, 2, 3)
    square: bool = False  # the edges are between inner channels: as many out as in

    def layer(self, real: bool, inputs: int, outputs: int, groups: int, ndim: int) -> nn.Module:
        """Make a layer of the real library, or of the reference."""
        module = upstream.torch_conv_kan("kan_convs") if real else self.module
        cls = getattr(module, f"{self.stem}{ndim}DLayer")
        outputs = inputs if self.square else outputs
        layer = cls(inputs, outputs, 2, groups=groups, padding=1, **self.options)
        self.prepare(layer)
        return layer


def _wavelets(version: str, ndims: tuple[int, ...]) -> Family:
    return Family(
        conv_wav_kan,
        "WavKANConv",
        f"torch-conv-kan/wav-conv-{version.replace('_', '-')}",
        2,
        {"wav_version": version},
        _draw_wavelets,
        _unmix_wavelets,
        2,
        ndims,
    )


FAMILIES = {
    "kan-conv": Family(
        conv_kan,
        "KANConv",
        "torch-conv-kan/kan-conv",
        5,
        {"spline_order": 2, "grid_size": 2},
        bare=_no_prelus,
    ),
    "fast-conv": Family(
        conv_fast_kan, "FastKANConv", "torch-conv-kan/fast-conv", 4, {"grid_size": 3}
    ),
    "relu-conv": Family(
        conv_relu_kan,
        "ReLUKANConv",
        "torch-conv-kan/relu-conv",
        5,
        {"g": 3, "k": 1},
        bare=_linear_outside,
    ),
    "relu-conv-bottleneck": Family(
        conv_relu_kan,
        "BottleNeckReLUKANConv",
        "torch-conv-kan/relu-conv-bottleneck",
        4,
        {"g": 3, "k": 1},
        bare=_inner_edges_only,
        square=True,
    ),
    "wav-conv-base": _wavelets("base", (1, 2, 3)),
    "wav-conv-fast": _wavelets("fast", (1, 2, 3)),
    "wav-conv-fast-plus-one": _wavelets("fast_plus_one", (1, 2)),
}

SHAPES = [  # family, spatial axes, groups, edge
    ("kan-conv", 2, 2, "tap"),
    ("kan-conv", 3, 1, "pair"),
    ("fast-conv", 1, 2, "pair"),
    ("relu-conv", 2, 1, "tap"),
    ("relu-conv-bottleneck", 1, 2, "tap"),
    ("wav-conv-base", 1, 2, "pair"),
    ("wav-conv-fast", 1, 1, "tap"),
    ("wav-conv-fast", 2, 2, "pair"),
    ("wav-conv-fast-plus-one", 1, 2, "pair"),
]


def _row(name: str, ndim: int, groups: int, edge: str, real: bool) -> Case:
    family = FAMILIES[name]

    def layer(inputs: int, outputs: int, groups: int, ndim: int) -> nn.Module:
        return family.layer(real, inputs, outputs, groups, ndim)

    return Case(
        f"{'upstream-' if real else ''}{name}-{ndim}d-g{groups}-{edge}",
        lambda: ConvNet(layer(4, 4, groups, ndim), layer(4, 2, groups, ndim)),
        family.adapter,
        family.width if edge == "tap" else family.width * 2**ndim + family.pair_width,
        in_shape=(4, *[3] * ndim),
        edge=edge,
        layer=layer,
        ndims=family.ndims,
        groups=True,
        bare=family.bare,
    )


ROWS = [_row(*shape, real=real) for real in (False, True) for shape in SHAPES]
