"""deep-kan 0.0.4 (imported as ``deepkan``): its B-spline, Chebyshev and radial basis layers.

SplineLinearLayer  phi_oi(x) = base_weights[o,i] silu(x)
                               + spline_scales[o,i] sum_k spline_weights[o,i,k] B_k(x)
ChebyshevKANLayer  phi_io(x) = sum_k cheby_coeffs[i,o,k] T_k(tanh(x))
RBFKANLayer        phi_io(x) = base_linear.weight[o,i] silu(x)
                               + sum_k rbf_linear.spline_weight[(i k),o] rbf_k(x)
"""

from kanmeta.adapter import Adapter, Slot

ADAPTERS = (
    Adapter(
        name="deep-kan",
        class_names=("SplineLinearLayer",),
        slots=(
            Slot("base_weights", "o i"),
            Slot("spline_weights", "o i k", scaled_by="spline_scales"),
        ),
        grid_updates={"_update_knots": "output_dim"},
        rows="always",
    ),
    Adapter(
        name="deep-kan/chebyshev",
        class_names=("ChebyshevKANLayer",),
        slots=(Slot("cheby_coeffs", "i o k"),),
        rows="always",
    ),
    Adapter(
        name="deep-kan/rbf",
        class_names=("RBFKANLayer",),
        slots=(
            Slot("base_linear.weight", "o i", optional=True),
            Slot("rbf_linear.spline_weight", "(i k) o"),
        ),
        plain={"rbf_linear.grid": "k"},
        optional_plain={"base_linear.bias": "o"},
        rows="always",
    ),
)
