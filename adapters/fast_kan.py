"""fast-kan (Ziyao Li): ``FastKANLayer``, with and without base update and layer norm.

torch-conv-kan (IvanDrokin) has a copy in ``kans.layers`` with the same tensors; its activation is
a module.

phi_oi(x) = base_linear.weight[o,i] silu(x) + sum_k spline_linear.weight[o,(i k)] rbf_k(norm(x))
The coefficients lie in two child modules; the base branch's bias is per output and stays.
"""

from kanmeta.adapter import Adapter, Slot

ADAPTERS = (
    Adapter(
        name="fast-kan",
        class_names=("FastKANLayer",),
        slots=(
            Slot("base_linear.weight", "o i", optional=True),
            Slot("spline_linear.weight", "o (i k)"),
        ),
        plain={"rbf.grid": "k"},
        optional_plain={
            "base_linear.bias": "o",
            "layernorm.weight": "i",
            "layernorm.bias": "i",
        },
        free=("base_activation.*",),
        rows="always",
        leading=True,
    ),
)
