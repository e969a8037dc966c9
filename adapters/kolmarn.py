"""kolmarn 0.1.0: ``KANLayer``. Its top-level package is called ``kan``, as is pykan's.

phi_oi(x) = linear.weight[o,i] x + sum_k coeff[o,i,k] basis_k(x)
The basis is a cubic bump or a Gaussian at each of ``basis.knots``, which all edges share.
"""

from kanmeta.adapter import Adapter, Slot

ADAPTERS = (
    Adapter(
        name="kolmarn",
        class_names=("KANLayer",),
        slots=(Slot("linear.weight", "o i"), Slot("coeff", "o i k")),
        plain={"basis.knots": "k", "linear.bias": "o", "bias": "o"},
        rows="always",
    ),
)
