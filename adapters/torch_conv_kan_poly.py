"""torch-conv-kan (IvanDrokin): polynomial convolutions of 1 to 3 dimensions.

phi_goi(x) = base_conv[g][o,i] b(x) + sum_k c[g][o,i,k] P_k(x), at each kernel position
``poly_weights`` are one tensor for all groups, and in them those of a degree are adjacent, "(k i)";
``poly_conv`` of KACN is a convolution a group, with "(i k)". KALN, KAJN and KABN have the same
tensors and are told apart by the method that computes P. A bottleneck has edges between its n inner
channels only: its base branch joins other channels and stays plain.
Mixtures of experts, attention and focal modulation consist of these layers, found one by one.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from kanmeta.adapter import Adapter, Slot
from kanmeta.conv_basis import ConvBranch, Convolution
from kanmeta.functions import Evaluate, elementwise
from kanmeta.polynomials import chebyshev, gram, jacobi
from kanmeta.spec import tensor_at

BASE = Slot("base_conv.{g}.weight", "o i ...")
POLYNOMIALS = Slot("poly_weights", "g o (k i) ...")
NORMS = ("layer_norm.*",)
"""The constructor's choice; never coefficients."""


def _several_groups(layer: nn.Module) -> str | None:
    if layer.groups == 1:
        return None
    return (
        f"with groups={layer.groups} its library cuts the polynomials of all channels, ordered by "
        "degree, in consecutive parts: a coefficient belongs to no edge. KAGNConv has groups that "
        "can be converted"
    )


def _activation(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return getattr(layer, "base_activation", F.silu)


def _drops(layer: nn.Module) -> bool:
    """Whether dropout acts within the basis."""
    dropout = layer.dropout
    return isinstance(dropout, nn.Module) and dropout.training and getattr(dropout, "p", 0.0) > 0


def _activated(layer: nn.Module, group: int, y: Tensor) -> Tensor:
    return _activation(layer)(layer.layer_norm[group](y))  # type: ignore[index, operator]


def _normed(layer: nn.Module, group: int, y: Tensor) -> Tensor:
    y = layer.layer_norm[group](y)  # type: ignore[index, operator]
    return layer.dropout(y) if isinstance(layer.dropout, nn.Module) else y


def _chebyshev(layer: nn.Module) -> Evaluate:
    return chebyshev(layer.get_buffer("arange"), 1 - float(layer.epsilon))  # type: ignore[arg-type]


def _jacobi(layer: nn.Module) -> Evaluate | None:
    if _drops(layer):
        return None
    return jacobi(int(layer.degree), float(layer.a), float(layer.b))  # type: ignore[arg-type]


def _gram(layer: nn.Module) -> Evaluate | None:
    if _drops(layer):
        return None
    return gram(int(layer.degree), _activation(layer), tensor_at(layer, "beta_weights"))  # type: ignore[arg-type]


def _base(layer: nn.Module) -> Evaluate:
    return elementwise(_activation(layer))


def _identity(layer: nn.Module) -> Evaluate:
    return elementwise(_unchanged)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _poly(base: Callable[[nn.Module], Evaluate], basis: ConvBranch) -> Convolution:
    branches = {BASE.path: ConvBranch(base), POLYNOMIALS.path: basis}
    return Convolution(branches, "base_conv.0", _activated)


ADAPTERS = (
    Adapter(
        name="torch-conv-kan/kaln-conv",
        class_names=("KALNConvNDLayer",),
        slots=(BASE, POLYNOMIALS),
        free=NORMS,
        edges="g o i ...",
        methods=("compute_legendre_polynomials",),
    ),
    Adapter(
        name="torch-conv-kan/kajn-conv",
        class_names=("KAJNConvNDLayer",),
        slots=(BASE, POLYNOMIALS),
        free=NORMS,
        edges="g o i ...",
        methods=("compute_jacobi_polynomials",),
        rows="always",
        basis=_poly(_identity, ConvBranch(_jacobi)),
    ),
    Adapter(
        name="torch-conv-kan/kabn-conv",
        class_names=("KABNConvNDLayer",),
        slots=(BASE, Slot("poly_weights", "g o (i k) ...")),
        free=NORMS,
        edges="g o i ...",
        methods=("bernstein_poly",),
        broken=(
            "its basis is 1 everywhere, so the coefficients only act as a bias, and backward fails "
            "where the layer's input needs a gradient"
        ),
    ),
    Adapter(
        name="torch-conv-kan/kacn-conv",
        class_names=("KACNConvNDLayer",),
        slots=(Slot("poly_conv.{g}.weight", "o (i k) ..."),),
        plain={"arange": "1 1 k 1..."},
        free=NORMS,
        edges="g o i ...",
        rows="always",
        basis=Convolution({"poly_conv.{g}.weight": ConvBranch(_chebyshev)}, "poly_conv.0", _normed),
    ),
    Adapter(  # its class is derived from the next one's, so it is asked first
        name="torch-conv-kan/kagn-conv-peft",
        class_names=("PEFTKAGNConvNDLayer",),
        slots=(BASE, POLYNOMIALS),
        plain={"beta_weights": "k"},
        optional_plain={
            "poly_weights_extra": "g o extra_edges ...",
            "beta_weights_extra": "extra",
            "poly_weights_delta": "g o delta_edges ...",
            "beta_weights_delta": "delta",
            "delta_indices": "delta_edges",
        },
        free=NORMS,
        edges="g o i ...",
        methods=("fuse_layer",),
        broken=(
            "it trains small additions to frozen coefficients. Wrap the layer and train it first, "
            "then convert what fuse_layer returns"
        ),
    ),
    Adapter(
        name="torch-conv-kan/kagn-conv",
        class_names=("KAGNConvNDLayer",),
        slots=(BASE, POLYNOMIALS),
        plain={"beta_weights": "k"},
        free=NORMS,
        edges="g o i ...",
        methods=("gram_poly",),
        rows="always",
        basis=_poly(_base, ConvBranch(_gram)),
    ),
    Adapter(
        name="torch-conv-kan/kagn-conv-v2",
        class_names=("KAGNConvNDLayerV2",),
        slots=(Slot("base_conv.weight", "o i ..."), Slot("poly_conv.weight", "o (k i) ...")),
        plain={"beta_weights": "k"},
        free=NORMS,
        edges="o i ...",
        methods=("gram_poly",),
        broken=_several_groups,
        rows="always",
    ),
    Adapter(
        name="torch-conv-kan/kagn-conv-bottleneck",
        class_names=("BottleNeckKAGNConvNDLayer",),
        slots=(POLYNOMIALS,),
        plain={
            "beta_weights": "k",
            "base_conv.{g}.weight": "all_o all_i ...",
            "inner_proj.{g}.weight": "i all_i 1...",
            "out_proj.{g}.weight": "all_o o 1...",
        },
        free=NORMS,
        edges="g o i ...",
        methods=("gram_poly",),
        rows="eval",
    ),
    Adapter(
        name="torch-conv-kan/kagn-expert",
        class_names=("KAGNExpert",),
        slots=(POLYNOMIALS,),
        plain={"beta_weights": "k"},
        edges="g o i ...",
        methods=("gram_poly",),
        rows="always",
    ),
)
