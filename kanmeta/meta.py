"""The meta-learner M: a prompt z of ``dim_z`` numbers in, ``dim_w`` coefficients out.

M(z) = W2 a(W1 z + b1) + b2, a two-layer MLP (MetaKAN, ICML 2025, Eq. 8). What a layer reads is
w = offset + scale * M(z), with two constants per layer and coefficient that are not trained; see
:mod:`kanmeta.initialise` for what they are good for.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "MetaLearner"]


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": _identity,
}
"""Activations a meta-learner can have, by the name that ``convert`` and checkpoints use."""


class MetaLearner(nn.Module):
    """A two-layer MLP that many edges share.

    The parameters are registered directly instead of through ``nn.Linear``, so that tools which
    rewrite every linear layer of a model (quantisation, LoRA, ``model.apply(init)``) leave it be.

    Args:
        dim_z: numbers in a prompt.
        hidden: width of the hidden layer.
        dim_w: coefficients of an edge.
        activation: a key of :data:`ACTIVATIONS`.
        bias: whether b1 and b2 exist.

    Attributes:
        weight1: W1, ``(hidden, dim_z)``.
        bias1: b1, ``(hidden,)``, or None.
        weight2: W2, ``(dim_w, hidden)``.
        bias2: b2, ``(dim_w,)``, or None.
    """

    bias1: nn.Parameter | None
    bias2: nn.Parameter | None
    gathered_with_model = False  # set by kanmeta.fully_shard

    def __init__(
        self, dim_z: int, hidden: int, dim_w: int, activation: str = "relu", bias: bool = True
    ) -> None:
        """Allocate the parameters, all zero; :mod:`kanmeta.initialise` fills them."""
        super().__init__()
        self.activation = activation
        self.weight1 = nn.Parameter(torch.zeros(hidden, dim_z))
        self.weight2 = nn.Parameter(torch.zeros(dim_w, hidden))
        self.register_parameter("bias1", nn.Parameter(torch.zeros(hidden)) if bias else None)
        self.register_parameter("bias2", nn.Parameter(torch.zeros(dim_w)) if bias else None)
        self.bindings: list[object] = []  # of the layers that use it; filled by surgery

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the bindings: each adds itself again, and a layer alone copies alone."""
        return {**self.__dict__, "bindings": []}

    @property
    def dim_z(self) -> int:
        """Numbers in a prompt."""
        return self.weight1.shape[1]

    @property
    def hidden(self) -> int:
        """Width of the hidden layer."""
        return self.weight1.shape[0]

    @property
    def dim_w(self) -> int:
        """Coefficients of an edge."""
        return self.weight2.shape[0]

    @property
    def has_bias(self) -> bool:
        """Whether b1 and b2 exist."""
        return self.bias1 is not None

    def folded(
        self, z: Tensor, scale: Tensor | None, offset: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """W1, b1, W2, b2 of the MLP that gives offset + scale * M(z), in the dtype of ``z``.

        Scale and offset are folded into the small matrices, not applied to E x dim_w numbers.
        """
        weight2, bias2 = self.weight2.to(z), None if self.bias2 is None else self.bias2.to(z)
        if scale is not None:
            weight2 = scale.to(z)[:, None] * weight2
            bias2 = None if bias2 is None else scale.to(z) * bias2
        if offset is not None:
            bias2 = offset.to(z) if bias2 is None else offset.to(z) + bias2
        bias1 = None if self.bias1 is None else self.bias1.to(z)
        return self.weight1.to(z), bias1, weight2, bias2

    def forward(
        self, z: Tensor, scale: Tensor | None = None, offset: Tensor | None = None
    ) -> Tensor:
        """Return offset + scale * M(z).

        Args:
            z: prompts, ``(*, dim_z)``. Its dtype and device decide the result's: a layer that was
                moved or cast alone still works.
            scale, offset: ``(dim_w,)`` each.

        Returns:
            ``(*, dim_w)``.
        """
        weight1, bias1, weight2, bias2 = self.folded(z, scale, offset)
        if bias1 is None and self.activation == "relu" and self.dim_z == 1:
            # Without biases, relu(W1 z) = relu(z) relu(W1) + relu(-z) relu(-W1) for one number z:
            # two hidden units do exactly what `hidden` of them do.
            z = torch.cat([F.relu(z), F.relu(-z)], dim=-1)
            weight2 = weight2 @ torch.cat([F.relu(weight1), F.relu(-weight1)], dim=-1)
            return F.linear(z, weight2, bias2)
        return F.linear(ACTIVATIONS[self.activation](F.linear(z, weight1, bias1)), weight2, bias2)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return (
            f"dim_z={self.dim_z}, hidden={self.hidden}, dim_w={self.dim_w}, "
            f"activation={self.activation!r}, bias={self.has_bias}, layers={len(self.bindings)}"
        )
