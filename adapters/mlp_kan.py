"""mlp_kan 0.1.0: ``KANInterpoLayer`` and ``KANLayer``, an MLP on every edge. Input-major.

KANInterpoLayer  phi_io(x) = piecewise linear through the points (X[k], Y[i,o,k])
KANLayer         phi_io(x) = W2[i,o] silu(W1[i,o] f(x) + B1[i,o]) + B2[i,o],
                 f(x) = (x, sin(2^n x), cos(2^n x)): 289 numbers an edge by default
"""

from kanmeta.adapter import Adapter, Slot

ADAPTERS = (
    Adapter(
        name="mlp_kan/interpolation",
        class_names=("KANInterpoLayer",),
        slots=(Slot("Y", "i o k"),),
        optional_plain={"X": "k"},  # a plain attribute in older copies of the code
        rows="always",
        expands=True,
    ),
    Adapter(
        name="mlp_kan",
        class_names=("KANLayer",),
        slots=(
            Slot("W1", "i o h f"),
            Slot("B1", "i o h"),
            Slot("W2", "i o 1 h"),
            Slot("B2", "i o 1"),
        ),
        rows="always",
        expands=True,
    ),
)
