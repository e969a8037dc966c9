"""inkan 0.5.2: ``KANLayer``, which packs splines and base into one Parameter.

phi_oi(x) = weight[o, I K + i] silu(x) + sum_k weight[o, i K + k] B_k(x), for I inputs, K functions
``spline_weight`` and ``base_weight`` are properties of the library that cut ``weight``.
"""

from collections.abc import Mapping

from torch import nn

from kanmeta.adapter import Adapter, Slot
from kanmeta.errors import LayoutError


def _univariate(layer: nn.Module) -> Mapping[str, int]:
    if getattr(layer, "dim", None) != 1:
        raise LayoutError(
            f"its dim is {getattr(layer, 'dim', None)}: a surface over two inputs together has "
            "coefficients that belong to no edge; only dim=1 can be converted"
        )
    return {}


ADAPTERS = (
    Adapter(
        name="inkan",
        class_names=("KANLayer",),
        slots=(Slot("weight", "o (i k) + o i"),),
        plain={"grid_starts": "k"},
        sizes=_univariate,
        rows="always",
    ),
)
