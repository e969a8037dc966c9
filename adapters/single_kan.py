"""single-kan 0.2.0 (imported as ``skan``): ``SKANLinear``, one number an edge.

phi_oi(x) = f(x, weight[o,i]), with the user's f; one more column of ``weight`` is the bias, f(1, w)
"""

from collections.abc import Mapping

from torch import nn

from kanmeta.adapter import Adapter, Slot


def _has_function(layer: nn.Module, sizes: Mapping[str, int]) -> str | None:
    # Without this, every bias-free linear layer would have the same tensors.
    return None if callable(getattr(layer, "basis_function", None)) else "it has no basis_function"


ADAPTERS = (
    Adapter(
        name="single-kan",
        class_names=("SKANLinear",),
        slots=(Slot("weight", "o i"),),
        check=_has_function,
        broken="it has one number an edge already: there is nothing to compress",
    ),
)
