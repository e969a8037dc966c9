"""ikan 1.3.0: five kinds of layer with a base branch. Its ``KANLinear`` is efficient-kan's.

phi_oi(x) = base_weight[o,i] silu(x) + one of
ChebyKANLinear    sum_k cheby_coeffs[o,i,k] T_k(tanh(clamp(x)))
FourierKANLinear  sum_k fourier_coeffs[0,o,i,k] cos((k+1) x) + fourier_coeffs[1,o,i,k] sin((k+1) x)
JacobiKANLinear   sum_k jacobi_coeffs[o,i,k] P_k(tanh(x))
TaylorKANLinear   sum_k taylor_coeffs[o,i,k] x^k
WaveletKANLinear  wavelet_weights[o,i] psi((x - translation[o,i]) / scale[o,i])
``GroupKANLinear`` and the KAT layers share rational functions among inputs: they have no edges.
"""

from collections.abc import Mapping

from kanmeta.adapter import Adapter, Slot


def _layer(kind: str, *slots: Slot, plain: Mapping[str, str] | None = None) -> Adapter:
    return Adapter(
        name=f"ikan/{kind.lower()}",
        class_names=(f"{kind}KANLinear",),
        slots=(Slot("base_weight", "o i"), *slots),
        plain=plain or {},
        optional_plain={"bias": "o"},
        rows="always",
    )


ADAPTERS = (
    _layer("Cheby", Slot("cheby_coeffs", "o i k"), plain={"cheby_orders": "k"}),
    _layer("Fourier", Slot("fourier_coeffs", "c o i k")),
    _layer("Jacobi", Slot("jacobi_coeffs", "o i k")),
    _layer("Taylor", Slot("taylor_coeffs", "o i k")),
    _layer(
        "Wavelet",
        Slot("wavelet_weights", "o i"),
        Slot("scale", "o i"),
        Slot("translation", "o i"),
    ),
)
