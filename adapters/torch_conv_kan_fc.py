"""torch-conv-kan (IvanDrokin): the fully connected layers of ``kans.layers``.

s_o = sum_i (base[o,i] act(x_i) + sum_k c_oik basis_k(x_i)); most layers normalise s over outputs.
The order of axes differs from layer to layer; ``FastKANLayer`` has the tensors of fast-kan's, and
is recognised by its adapter. ``BottleNeckGRAMLayer`` has polynomials on n x n inner edges only.
"""

from kanmeta.adapter import Adapter, Slot

NORMS = ("norm.*", "layer_norm.*", "bn.*", "prelu.*", "act.*", "base_activation.*")
"""Norms and activations: the constructor's choice, never coefficients."""

ADAPTERS = (
    Adapter(
        name="torch-conv-kan/spline",
        class_names=("KANLayer",),
        slots=(Slot("base_weight", "o i"), Slot("spline_weight", "o i k")),
        # Other libraries' KANLayer has the same two weights, but not this norm.
        plain={"layer_norm.weight": "o", "layer_norm.bias": "o"},
        free=("prelu.*", "base_activation.*"),
        rows="always",
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
    ),
    Adapter(
        name="torch-conv-kan/gram",
        class_names=("GRAMLayer",),
        slots=(Slot("base_weights", "o i"), Slot("grams_basis_weights", "i o k")),
        plain={"beta_weights": "k"},
        free=NORMS,
        writers={"init_weights": ""},
        rows="always",
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
