"""kanx 0.2.1, its PyTorch half: ``KANLinear`` and ``MatrixKANLinear``. Axes are input-major.

phi_io(x) = base_weight[i,o] silu(x) + sum_k spline_weight[i,o,k] B_k(x)
The names are those of efficient-kan, whose axes are ``o i k``. Where I == O only the grid tells
them apart: kanx stores it without the knots beyond its ends.
"""

from collections.abc import Mapping

from torch import nn

from kanmeta.adapter import Adapter, Slot


def _bare_grid(layer: nn.Module, sizes: Mapping[str, int]) -> str | None:
    order = getattr(layer, "spline_order", None)
    if not isinstance(order, int) or sizes["t"] != sizes["k"] - order + 1:
        return (
            f"its grid has {sizes['t']} knots a row; kanx's has grid_size + 1 = "
            f"{sizes['k']} - spline_order + 1 (spline_order is {order})"
        )
    return None


ADAPTERS = (
    Adapter(
        name="kanx",
        class_names=("KANLinear", "MatrixKANLinear"),
        slots=(Slot("base_weight", "i o"), Slot("spline_weight", "i o k")),
        plain={"grid": "i t"},
        check=_bare_grid,
        # update_grid_from_samples moves the grid and leaves the coefficients: nothing to refuse.
        writers={"prune": "It zeroes edges: call kanmeta.materialize(model) first."},
        rows="always",
    ),
)
