"""fast-kan (Ziyao Li): ``FastKANLayer``, with and without base update and layer norm.

torch-conv-kan (IvanDrokin) has a copy in ``kans.layers`` with the same tensors; its activation is
a module.

phi_oi(x) = base_linear.weight[o,i] silu(x) + sum_k spline_linear.weight[o,(i k)] rbf_k(norm(x))
The coefficients lie in two child modules; the base branch's bias is per output and stays.
"""

from torch import Tensor, nn

from kanmeta.adapter import Adapter, Slot
from kanmeta.basis import Basis, Branch, Known, elementwise, gaussians


def _base(layer: nn.Module) -> Known:
    return elementwise(layer.base_activation)  # type: ignore[arg-type]


def _gaussians(layer: nn.Module) -> Known:
    rbf = layer.get_submodule("rbf")
    return gaussians(rbf.grid, float(rbf.denominator))  # type: ignore[arg-type]


def _normed(layer: nn.Module, x: Tensor) -> Tensor:
    norm = getattr(layer, "layernorm", None)
    return x if norm is None else norm(x)


def _with_bias(layer: nn.Module, y: Tensor) -> Tensor:
    base = getattr(layer, "base_linear", None)
    return y if base is None or base.bias is None else y + base.bias


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
        settings=("rbf.denominator", "base_activation"),
        rows="always",
        leading=True,
        basis=Basis(
            {
                "base_linear.weight": Branch(_base),
                "spline_linear.weight": Branch(_gaussians, _normed),
            },
            _with_bias,
        ),
    ),
)
