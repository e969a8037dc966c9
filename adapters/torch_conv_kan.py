"""torch-conv-kan (IvanDrokin): spline, RBF, wavelet and ReLU convolutions of 1 to 3 dimensions.

phi_goi(x) = base_conv[g][o,i] b(x) + sum_k c[g][o,i,k] B_k(x), at each kernel position
In a weight the k of an input are adjacent, "o (i k)". A group has convolutions of its own, from its
inputs to its outputs. Wavelets take scale and translation of their argument, which the kernel
positions share; ``wavelet_out`` mixes outputs after the edges are summed. A bottleneck has edges
between its n inner channels only: its base branch joins other channels and stays plain.
"""

from torch import Tensor, nn

from kanmeta.adapter import Adapter, Slot
from kanmeta.conv_basis import ConvBranch, Convolution
from kanmeta.functions import Evaluate, elementwise, gaussians
from kanmeta.polynomials import splines_in_turn
from kanmeta.splines import splines

BASE = Slot("base_conv.{g}.weight", "o i ...")
CHOSEN = ("layer_norm.*", "base_activation.*")
"""Norms and base activations are the constructor's choice and never hold coefficients."""


_FEW = 32
"""Knots for which all splines of a grid that channels share are computed at once."""


def _base(layer: nn.Module) -> Evaluate:
    return elementwise(layer.base_activation)  # type: ignore[arg-type]


def _splines(layer: nn.Module) -> Evaluate:
    """The grid is a plain tensor, which a cast of the layer leaves as it is."""
    grid, order = layer.grid, int(layer.spline_order)  # type: ignore[arg-type]
    assert isinstance(grid, Tensor)
    weight = next(layer.parameters())
    if grid.dtype == weight.dtype and len(grid) <= _FEW:
        return splines(grid[None], order)
    return splines_in_turn(grid.to(weight.device)[None], order)


def _activated(layer: nn.Module, group: int, y: Tensor) -> Tensor:
    y = layer.prelus[group](layer.layer_norm[group](y))  # type: ignore[index, operator]
    return _dropped(layer, y)


def _gaussians(layer: nn.Module) -> Evaluate:
    rbf = layer.get_submodule("rbf")
    return gaussians(rbf.grid, float(rbf.denominator))  # type: ignore[arg-type]


def _normed(layer: nn.Module, group: int, x: Tensor) -> Tensor:
    """The norm is over the inputs of the Gaussians."""
    y: Tensor = layer.layer_norm[group](_dropped(layer, x))  # type: ignore[index, operator]
    return y


def _dropped(layer: nn.Module, x: Tensor) -> Tensor:
    dropout = layer.dropout
    return dropout(x) if isinstance(dropout, nn.Module) else x


def _wavelets(version: str, path: str, layout: str) -> Adapter:
    """The versions differ in where the weights of the wavelets are."""
    return Adapter(
        name=f"torch-conv-kan/wav-conv-{version}",
        class_names=("WavKANConvNDLayer",),
        slots=(
            BASE,
            Slot(path, layout),
            Slot("wavelet_conv.{g}.scale", "1 o i 1..."),
            Slot("wavelet_conv.{g}.translation", "1 o i 1..."),
        ),
        plain={"wavelet_conv.{g}.wavelet_out.weight": "o o 1..."},
        free=CHOSEN,
        settings=("wavelet_conv.0.wavelet_type",),
        edges="g o i ...",
        rows="eval",
        expands=True,
    )


ADAPTERS = (
    Adapter(
        name="torch-conv-kan/kan-conv",
        class_names=("KANConvNDLayer",),
        slots=(BASE, Slot("spline_conv.{g}.weight", "o (i k) ...")),
        plain={"prelus.{g}.weight": "1"},
        free=CHOSEN,
        edges="g o i ...",
        rows="always",
        basis=Convolution(
            {BASE.path: ConvBranch(_base), "spline_conv.{g}.weight": ConvBranch(_splines)},
            "base_conv.0",
            _activated,
        ),
    ),
    Adapter(
        name="torch-conv-kan/fast-conv",
        class_names=("FastKANConvNDLayer",),
        slots=(BASE, Slot("spline_conv.{g}.weight", "o (i k) ...")),
        plain={"rbf.grid": "k"},
        free=CHOSEN,
        edges="g o i ...",
        rows="always",
        basis=Convolution(
            {
                BASE.path: ConvBranch(_base),
                "spline_conv.{g}.weight": ConvBranch(_gaussians, _normed),
            },
            "base_conv.0",
        ),
    ),
    Adapter(
        name="torch-conv-kan/relu-conv",
        class_names=("ReLUConvNDLayer",),
        slots=(BASE, Slot("relukan_conv.{g}.weight", "o (i k) ...")),
        plain={"phase_low": "1 i k 1...", "phase_high": "1 i k 1..."},
        free=CHOSEN,
        edges="g o i ...",
        rows="always",
    ),
    Adapter(
        name="torch-conv-kan/relu-conv-bottleneck",
        class_names=("BottleNeckReLUConvNDLayer",),
        slots=(Slot("relukan_conv.{g}.weight", "o (i k) ..."),),
        plain={
            "phase_low": "1 i k 1...",
            "phase_high": "1 i k 1...",
            "base_conv.{g}.weight": "all_o all_i ...",
            "inner_proj.{g}.weight": "i all_i 1...",
            "out_proj.{g}.weight": "all_o o 1...",
        },
        free=CHOSEN,
        edges="g o i ...",
        rows="always",
    ),
    _wavelets("base", "wavelet_conv.{g}.wavelet_weights.{o}.weight", "1 i ..."),
    _wavelets("fast", "wavelet_conv.{g}.wavelet_weights.weight", "o i ..."),
    _wavelets("fast-plus-one", "wavelet_conv.{g}.wavelet_weights.weight", "o 1 i ..."),
)
