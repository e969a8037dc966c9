"""efficient-kan (Blealtan): ``KANLinear``, with and without its ``spline_scaler``.

phi_oi(x) = base_weight[o,i] silu(x) + spline_scaler[o,i] sum_k spline_weight[o,i,k] B_k(x)
"""

from collections.abc import Mapping

from torch import Tensor, nn

from kanmeta.adapter import Adapter, Slot
from kanmeta.basis import Basis, Branch, Known, elementwise, splines


def _uniform_extended_grid(layer: nn.Module, sizes: Mapping[str, int]) -> str | None:
    # kanx has the same names with "i o k" weights; only the width of its grid tells it apart.
    order = getattr(layer, "spline_order", None)
    if not isinstance(order, int) or sizes["t"] != sizes["k"] + order + 1:
        return (
            f"its grid has {sizes['t']} knots a row; efficient-kan's has "
            f"grid_size + 2 * spline_order + 1 = {sizes['k']} + spline_order + 1 "
            f"(spline_order is {order})"
        )
    return None


def _base(layer: nn.Module) -> Known:
    return elementwise(layer.base_activation)  # type: ignore[arg-type]


def _splines(layer: nn.Module) -> Known:
    return splines(layer.get_buffer("grid"), int(layer.spline_order))  # type: ignore[arg-type]


def _with_bias(layer: nn.Module, y: Tensor) -> Tensor:
    bias = getattr(layer, "bias", None)
    return y if bias is None else y + bias


ADAPTERS = (
    Adapter(
        name="efficient-kan",
        class_names=("KANLinear",),
        slots=(
            Slot("base_weight", "o i"),
            Slot("spline_weight", "o i k", scaled_by="spline_scaler"),
        ),
        plain={"grid": "i t"},
        optional_plain={"bias": "o"},  # a common local addition; the reference layers have it too
        check=_uniform_extended_grid,
        settings=("base_activation",),
        grid_updates={"update_grid": "out_features"},
        rows="always",
        leading=True,
        basis=Basis({"base_weight": Branch(_base), "spline_weight": Branch(_splines)}, _with_bias),
    ),
)
