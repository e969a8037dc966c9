"""convkan 0.0.1.2: ``KANLinear`` with groups, the layer inside ``ConvKAN``.

phi_goi(x) = base_weight[g,o,i] silu(x) + spline_scaler[g,o,i] sum_k spline_weight[g,o,i,k] B_k(x)
``ConvKAN`` unfolds its image, so an input i is one tap of one input channel of the group, in the
order (channel, kh, kw): each kernel position is an edge already.
"""

from collections.abc import Mapping

from torch import nn

from kanmeta.adapter import Adapter, Slot


def _extended_grid(layer: nn.Module, sizes: Mapping[str, int]) -> str | None:
    order = getattr(layer, "spline_order", None)
    if not isinstance(order, int) or sizes["t"] != sizes["k"] + order + 1:
        return (
            f"its grid has {sizes['t']} knots a row; convkan's has "
            f"{sizes['k']} + spline_order + 1 (spline_order is {order})"
        )
    return None


ADAPTERS = (
    Adapter(
        name="convkan",
        class_names=("KANLinear",),
        slots=(
            Slot("base_weight", "g o i"),
            Slot("spline_weight", "g o i k", scaled_by="spline_scaler"),
        ),
        plain={"grid": "g i t"},
        edges="g o i",
        check=_extended_grid,
        grid_updates={"update_grid": "out_features"},
        rows="always",
    ),
)
