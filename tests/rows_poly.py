"""Rows for the polynomial convolutions of torch-conv-kan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn import functional

from recipes.reference import conv_chebyshev, conv_gram, conv_gram_bottleneck, conv_poly
from tests import upstream
from tests.case import Case
from tests.rows_conv import ConvNet


def _as_is(layer: nn.Module) -> None:
    pass


def _inner_edges_only(layer: nn.Module) -> None:
    """Make the inner channels those outside, and leave out the base branch."""
    for group in range(layer.groups):
        nn.init.zeros_(layer.base_conv[group].weight)
        nn.init.dirac_(layer.inner_proj[group].weight)
        nn.init.dirac_(layer.out_proj[group].weight)


@dataclass(frozen=True)
class Family:
    """A class of layers: where it is, options that make it small, its coefficients at one tap.

    ``stem`` is the class name, {} the number of dimensions.
    """

    reference: ModuleType
    stem: str
    real: str
    adapter: str
    width: int
    options: dict[str, Any] = field(default_factory=dict)
    groups: bool = True
    square: bool = False  # all its edges only where there are as many inputs as outputs
    bare: Callable[[nn.Module], None] = _as_is

    def layer(self, real: bool, inputs: int, outputs: int, groups: int, ndim: int) -> nn.Module:
        """Make a layer of the real library, or of the reference."""
        module = upstream.torch_conv_kan(f"kan_convs.{self.real}") if real else self.reference
        cls = getattr(module, self.stem.format(ndim))
        options: dict[str, Any] = {"degree": 2, "groups": groups, "padding": 1, **self.options}
        if self.stem == "KAGNExpert":
            convolve = getattr(functional, f"conv{ndim}d")
            return cls(convolve, inputs, outputs, kernel_size=2, ndim=ndim, **options)
        return cls(inputs, outputs, 2, **options)


FAMILIES = {
    "kaln-conv": Family(conv_poly, "KALNConv{}DLayer", "kaln_conv", "kaln-conv", 4),
    "kajn-conv": Family(
        conv_poly, "KAJNConv{}DLayer", "kajn_conv", "kajn-conv", 4, {"a": 0.5, "b": 1.5}
    ),
    "kacn-conv": Family(
        conv_chebyshev,
        "KACNConv{}DLayer",
        "kacn_conv",
        "kacn-conv",
        4,
        {"degree": 3, "norm_layer": nn.Identity},  # the mean over pixels follows, nothing between
    ),
    "kagn-conv": Family(conv_gram, "KAGNConv{}DLayer", "kagn_conv", "kagn-conv", 4),
    "kagn-conv-norm": Family(
        conv_gram, "KAGNConv{}DLayer", "kagn_conv", "kagn-conv", 4, {"affine": True}
    ),
    "kagn-conv-v2": Family(
        conv_gram, "KAGNConv{}DLayerV2", "kagn_conv_v2", "kagn-conv-v2", 4, groups=False
    ),
    "kagn-conv-bottleneck": Family(
        conv_gram_bottleneck,
        "BottleNeckKAGNConv{}DLayer",
        "kagn_bottleneck_conv",
        "kagn-conv-bottleneck",
        3,
        square=True,
        bare=_inner_edges_only,
    ),
    "kagn-expert": Family(
        conv_gram_bottleneck, "KAGNExpert", "kagn_bottleneck_conv", "kagn-expert", 3
    ),
}

SHAPES = [  # family, spatial axes, groups, edge
    ("kaln-conv", 2, 2, "tap"),
    ("kaln-conv", 1, 1, "tap"),
    ("kajn-conv", 2, 2, "tap"),
    ("kajn-conv", 3, 1, "pair"),
    ("kacn-conv", 2, 2, "tap"),
    ("kacn-conv", 1, 1, "pair"),
    ("kagn-conv", 2, 2, "tap"),
    ("kagn-conv", 3, 1, "pair"),
    ("kagn-conv-norm", 1, 1, "tap"),
    ("kagn-conv-v2", 2, 1, "tap"),
    ("kagn-conv-bottleneck", 2, 2, "tap"),
    ("kagn-expert", 2, 2, "tap"),
]


def _row(name: str, ndim: int, groups: int, edge: str, real: bool) -> Case:
    family = FAMILIES[name]

    def layer(inputs: int, outputs: int, groups: int, ndim: int) -> nn.Module:
        return family.layer(real, inputs, outputs, groups, ndim)

    def any_size(inputs: int, outputs: int, groups: int, ndim: int) -> nn.Module:
        return layer(inputs, inputs if family.square else outputs, groups, ndim)

    return Case(
        f"{'upstream-' if real else ''}{name}-{ndim}d-g{groups}-{edge}",
        lambda: ConvNet(layer(4, 4, groups, ndim), layer(4, 2, groups, ndim)),
        f"torch-conv-kan/{family.adapter}",
        family.width if edge == "tap" else family.width * 2**ndim,
        in_shape=(4, *[3] * ndim),
        edge=edge,
        layer=any_size,
        ndims=(1, 2, 3),
        groups=family.groups,
        bare=family.bare,
    )


ROWS = [_row(*shape, real=real) for real in (False, True) for shape in SHAPES]
