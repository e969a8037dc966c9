"""pykan 0.2.8: ``KANLayer``, the layers in ``MultKAN.act_fun``. Axes are input-major.

phi_io(x) = mask[i,o] (scale_base[i,o] b(x) + scale_sp[i,o] sum_k coef[i,o,k] B_k(x))
``Symbolic_KANLayer`` (``MultKAN.symbolic_fun``) holds no spline coefficients and is left alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kanmeta.adapter import Adapter, Container, Slot


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
        settings=("base_fun",),
        grid_updates={"update_grid_from_samples": "out_dim"},
        reindexers=("get_subset", "swap"),
        writers={"initialize_grid_from_parent": ""},
        rows="always",
        expands=True,
    ),
)


def not_symbolic(model: nn.Module) -> list[str]:
    """Affine numbers of symbolic functions whose masks are 0: they get no gradient."""
    layers = model.get_submodule("symbolic_fun").named_children()
    return [
        f"symbolic_fun.{name}.affine"
        for name, layer in layers
        if not layer.get_parameter("mask").any()
    ]


def _store(model: Any) -> dict[str, Any]:
    """Which inputs it uses, and the symbolic functions by name: (layer, input, output, name)."""
    functions = [
        [number, i, j, name]
        for number, layer in enumerate(model.symbolic_fun)
        for j, row in enumerate(layer.funs_name)
        for i, name in enumerate(row)
        if name != "0"
    ]
    return {"input_id": model.input_id.tolist(), "functions": functions}


def _restore(model: Any, state: dict[str, Any]) -> Callable[[], None]:
    lists = ("funs", "funs_avoid_singularity", "funs_name", "funs_sympy")
    before = [
        (layer, name, [list(row) for row in getattr(layer, name)])
        for layer in model.symbolic_fun
        for name in lists
    ]
    inputs = model.input_id

    def undo() -> None:
        model.input_id = inputs
        for layer, name, rows in before:
            setattr(layer, name, rows)

    numbers = [*state["input_id"], *(n for entry in state["functions"] for n in entry[:3])]
    if not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
        raise ValueError(f"expected numbers of inputs, layers and nodes, found {numbers}")
    try:
        model.input_id = torch.tensor(state["input_id"], device=inputs.device)
        for number, i, j, name in state["functions"]:
            if not isinstance(name, str):
                raise TypeError(f"expected the name of a function, found {name}")
            layer = model.symbolic_fun[number]
            layer.fix_symbolic(i, j, name, verbose=False)  # affine and masks come from the file
    except BaseException:
        undo()
        raise
    return undo


CONTAINERS = (
    Container(
        name="pykan",
        class_names=("MultKAN",),
        children=("act_fun", "symbolic_fun"),
        # They build a model from state_dict() and take edges out of it, or write it to disk.
        reindexers=(
            "checkout",
            "copy",
            "expand_width",
            "prune",
            "prune_input",
            "prune_node",
            "refine",
            "rewind",
            "saveckpt",
        ),
        writers={
            "initialize_from_another_model": "",
            "initialize_grid_from_another_model": "",
            "perturb": "",
        },
        dead=not_symbolic,
        revives=("auto_symbolic", "fix_symbolic", "set_mode"),
        store=_store,
        restore=_restore,
    ),
)
