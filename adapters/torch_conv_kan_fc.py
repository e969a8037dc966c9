"""torch-conv-kan (IvanDrokin): the fully connected layers of ``kans.layers``.

s_o = sum_i (base[o,i] act(x_i) + sum_k c_oik basis_k(x_i)); most layers normalise s over outputs.
The order of axes differs from layer to layer; ``FastKANLayer`` has the tensors of fast-kan's, and
is recognised by its adapter. ``BottleNeckGRAMLayer`` has polynomials on n x n inner edges only.
"""

from torch import Tensor, nn

from kanmeta.adapter import Adapter, Slot
from kanmeta.basis import Basis, Branch, Known, by_formula, elementwise, splines
from kanmeta.polynomials import chebyshev, gram, jacobi, relu_bumps, splines_in_turn
from kanmeta.spec import tensor_at

NORMS = ("norm.*", "layer_norm.*", "bn.*", "prelu.*", "act.*", "base_activation.*")
"""Norms and activations: the constructor's choice, never coefficients."""


def _act(layer: nn.Module) -> Known:
    return elementwise(layer.act)  # type: ignore[arg-type]


def _finish(layer: nn.Module, y: Tensor) -> Tensor:
    return layer.act(layer.norm(y))  # type: ignore[no-any-return, operator]


def _base_activation(layer: nn.Module) -> Known:
    return elementwise(layer.base_activation)  # type: ignore[arg-type]


def _splines(layer: nn.Module) -> Known:
    """The grid is a plain tensor, which a cast of the layer leaves as it is."""
    grid, order = layer.grid, int(layer.spline_order)  # type: ignore[arg-type]
    weight = tensor_at(layer, "layer_norm.weight")
    assert isinstance(grid, Tensor)
    if grid.dtype != weight.dtype:
        return by_formula(splines_in_turn(grid.to(weight.device), order))
    return splines(grid.to(weight.device), order)


def _spline_finish(layer: nn.Module, y: Tensor) -> Tensor:
    return layer.prelu(layer.layer_norm(y))  # type: ignore[no-any-return, operator]


def _chebyshev(layer: nn.Module) -> Known:
    return by_formula(chebyshev(layer.get_buffer("arange")))


def _gram(layer: nn.Module) -> Known:
    beta = tensor_at(layer, "beta_weights")
    return by_formula(gram(int(layer.degrees), layer.act, beta))  # type: ignore[arg-type]


def _jacobi(layer: nn.Module) -> Known:
    return by_formula(jacobi(int(layer.degree), float(layer.a), float(layer.b)))  # type: ignore[arg-type]


def _relu_bumps(layer: nn.Module) -> Known:
    low, high = tensor_at(layer, "phase_low"), tensor_at(layer, "phase_high")
    return by_formula(relu_bumps(low, high, float(layer.r)))  # type: ignore[arg-type]


def _relu_bias(layer: nn.Module, y: Tensor) -> Tensor:
    return y + tensor_at(layer, "equal_size_conv.bias")


ADAPTERS = (
    Adapter(
        name="torch-conv-kan/spline",
        class_names=("KANLayer",),
        slots=(Slot("base_weight", "o i"), Slot("spline_weight", "o i k")),
        # Other libraries' KANLayer has the same two weights, but not this norm.
        plain={"layer_norm.weight": "o", "layer_norm.bias": "o"},
        free=("prelu.*", "base_activation.*"),
        rows="always",
        basis=Basis(
            {"base_weight": Branch(_base_activation), "spline_weight": Branch(_splines)},
            finish=_spline_finish,
        ),
    ),
    Adapter(
        name="torch-conv-kan/legendre",
        class_names=("KALNLayer",),
        slots=(Slot("base_weight", "o i"), Slot("poly_weight", "o (i k)")),
        free=NORMS,
    ),
    Adapter(
        name="torch-conv-kan/chebyshev",
        class_names=("ChebyKANLayer",),
        slots=(Slot("cheby_coeffs", "i o k"),),
        plain={"arange": "k"},
        rows="always",
        basis=Basis({"cheby_coeffs": Branch(_chebyshev)}),
    ),
    Adapter(
        name="torch-conv-kan/gram",
        class_names=("GRAMLayer",),
        slots=(Slot("base_weights", "o i"), Slot("grams_basis_weights", "i o k")),
        plain={"beta_weights": "k"},
        free=NORMS,
        writers={"init_weights": ""},
        rows="always",
        basis=Basis(
            {"base_weights": Branch(_act), "grams_basis_weights": Branch(_gram)}, finish=_finish
        ),
    ),
    Adapter(
        name="torch-conv-kan/bottleneck-gram",
        class_names=("BottleNeckGRAMLayer",),
        slots=(Slot("grams_basis_weights", "i o k"),),
        plain={
            "beta_weights": "k",
            "base_weights": "all_o all_i",
            "inner_proj.weight": "i all_i",
            "inner_proj.bias": "i",
            "outer_proj.weight": "all_o o",
            "outer_proj.bias": "all_o",
        },
        free=NORMS,
        writers={"init_weights": ""},
        rows="always",
    ),
    Adapter(
        name="torch-conv-kan/jacobi",
        class_names=("JacobiKANLayer",),
        slots=(Slot("base_weights", "o i"), Slot("jacobi_coeffs", "i o k")),
        free=NORMS,
        rows="always",
        basis=Basis(
            {"base_weights": Branch(_act), "jacobi_coeffs": Branch(_jacobi)}, finish=_finish
        ),
    ),
    Adapter(
        name="torch-conv-kan/bernstein",
        class_names=("BernsteinKANLayer",),
        slots=(Slot("base_weights", "o i"), Slot("bernstein_coeffs", "i o k")),
        free=NORMS,
        broken=(
            "its basis is 1 everywhere, so the coefficients only act as a bias, and backward fails "
            "where the layer's input needs a gradient"
        ),
    ),
    Adapter(
        name="torch-conv-kan/relu",
        class_names=("ReLUKANLayer",),
        # A Conv2d whose kernel spans the basis; the (i, k) basis is reshaped to it, not transposed.
        slots=(Slot("equal_size_conv.weight", "o (i k)", stored="o 1 k i"),),
        plain={"phase_low": "i k", "phase_high": "i k", "equal_size_conv.bias": "o"},
        rows="always",
        basis=Basis({"equal_size_conv.weight": Branch(_relu_bumps)}, _relu_bias),
    ),
    Adapter(
        name="torch-conv-kan/wavelet",
        class_names=("WavKANLayer",),
        slots=(
            Slot("scale", "o i"),
            Slot("translation", "o i"),
            Slot("wavelet_weights", "o i"),
            Slot("weight1", "o i"),  # of silu(x): in use here, unlike in Wav-KAN
        ),
        free=NORMS,
        settings=("wavelet_type",),
        rows="eval",
        expands=True,
    ),
)
