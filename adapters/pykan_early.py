"""pykan 0.0.x, as in the package kan_gpt: ``KANLayer`` with flat, output-major edges e = (o i).

phi_e(x) = mask[e] (scale_base[e] b(x) + scale_sp[e] sum_k coef[e,k] B_k(x))
Each edge has a grid row of its own; ``lock`` lets edges read the ``coef`` and grid row of another.
"""

from collections.abc import Mapping

from torch import nn

from kanmeta.adapter import Adapter, Container, Slot

from .pykan import not_symbolic


def _widths(layer: nn.Module) -> Mapping[str, int]:
    # int() so that a missing attribute, or a Parameter of that name, is not taken for a size
    return {"o": int(layer.out_dim), "i": int(layer.in_dim)}  # type: ignore[arg-type]


def _grid(layer: nn.Module, sizes: Mapping[str, int]) -> str | None:
    order = getattr(layer, "k", None)
    if not isinstance(order, int) or sizes["t"] != sizes["k"] - order + 1:
        return (
            f"its grid has {sizes['t']} knots a row; early pykan's has num + 1 = "
            f"{sizes['k']} - k + 1 (k is {order})"
        )
    return None if hasattr(layer, "weight_sharing") else "it has no weight_sharing"


ADAPTERS = (
    Adapter(
        name="pykan-early",
        class_names=("KANLayer",),
        slots=(
            Slot("scale_base", "(o i)"),
            Slot("coef", "(o i) k", scaled_by="scale_sp"),
        ),
        plain={"grid": "(o i) t", "mask": "(o i)"},
        sizes=_widths,
        check=_grid,
        writers={
            # A grid row of every edge, flat: no linear map of each input that outputs share.
            "update_grid_from_samples": "To train without it: train_kan(..., update_grid=False).",
            "initialize_grid_from_parent": "",
        },
        reindexers=("get_subset",),
        rows="always",
        expands=True,
    ),
)


CONTAINERS = (
    Container(
        name="pykan-early",
        class_names=("KAN",),
        children=("act_fun", "biases", "symbolic_fun"),
        reindexers=("prune",),
        writers={
            "update_grid_from_samples": "To train without it: train_kan(..., update_grid=False).",
            "initialize_from_another_model": "",
            "initialize_grid_from_another_model": "",
        },
        dead=not_symbolic,
        revives=("auto_symbolic", "fix_symbolic", "set_mode"),
    ),
)
