"""flashkan 0.2.0: ``KANLayer``.

phi_oi(x) = base_weight[o,i] silu(x) + sum_k spline_weight[o,i,k] B_k(x)
All inputs share one row of ``grid_starts``. The forward compiles its basis with ``torch.compile``.
"""

from kanmeta.adapter import Adapter, Slot

ADAPTERS = (
    Adapter(
        name="flashkan",
        class_names=("KANLayer",),
        slots=(Slot("base_weight", "o i"), Slot("spline_weight", "o i k")),
        plain={"grid_starts": "k"},
        rows="always",
    ),
)
