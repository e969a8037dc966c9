"""Whether stored tensors can become those of a model: types, inference mode, shared memory."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kanmeta.errors import CorruptCheckpointError, ModelMismatchError

__all__ = ["check_memory", "check_types"]


def check_types(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise CorruptCheckpointError for a stored tensor that cannot become the model's.

    And ModelMismatchError for a tensor of the model that cannot be written to.
    """
    for name, target in model.state_dict(keep_vars=True).items():
        stored = tensors.get(name)
        if stored is not None and isinstance(target, Tensor):
            _check_writable(name, target)
        if stored is None or not isinstance(target, Tensor) or stored.dtype == target.dtype:
            continue
        try:
            stored.flatten()[:1].to(target.dtype)
            possible = torch.can_cast(stored.dtype, target.dtype)
        except RuntimeError:  # there are no conversions of some formats of few bits
            possible = False
        if not possible:
            raise CorruptCheckpointError(
                f"{name} is stored as {stored.dtype}, the model's is {target.dtype}"
            )


def _check_writable(name: str, target: Tensor) -> None:
    if target.is_inference() and not torch.is_inference_mode_enabled():
        raise ModelMismatchError(
            f"{name} of the model was made in inference mode and cannot be written to: build the "
            "model outside of it"
        )


def check_memory(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelMismatchError for a tensor whose numbers share memory: torch cannot write to it.

    Those of converted layers have memory of their own by now.
    """
    for name, target in model.state_dict(keep_vars=True).items():
        if name in tensors and isinstance(target, Tensor) and _overlaps(target):
            raise ModelMismatchError(
                f"{name} of the model is an expanded tensor, whose numbers cannot differ: give it "
                "memory of its own first, tensor.data = tensor.data.contiguous()"
            )


def _overlaps(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
