"""pykan 0.2.8: ``KANLayer``, the layers in ``MultKAN.act_fun``. Axes are input-major.

phi_io(x) = mask[i,o] (scale_base[i,o] b(x) + scale_sp[i,o] sum_k coef[i,o,k] B_k(x))
``Symbolic_KANLayer`` (``MultKAN.symbolic_fun``) holds no spline coefficients and is left alone.
"""

from collections.abc import Mapping

from torch import nn

from kanmeta.adapter import Adapter, Slot


def _extended_grid(layer: nn.Module, sizes: Mapping[str, int]) -> str | None:
    order = getattr(layer, "k", None)
    if not isinstance(order, int) or sizes["t"] != sizes["k"] + order + 1:
        return (
            f"its grid has {sizes['t']} knots a row; pykan's has num + 2 k + 1 = "
            f"{sizes['k']} + k + 1 (k is {order})"
        )
    return None if hasattr(layer, "scale_sp") else "it has no scale_sp"


ADAPTERS = (
    Adapter(
        name="pykan",
        class_names=("KANLayer",),
        slots=(
            Slot("scale_base", "i o"),
            Slot("coef", "i o k", scaled_by="scale_sp"),
        ),
        plain={"grid": "i t", "mask": "i o"},
        check=_extended_grid,
        writers={
            "update_grid_from_samples": "To train without it: fit(..., update_grid=False).",
            "initialize_grid_from_parent": "",
            "swap": "",
        },
    ),
)
