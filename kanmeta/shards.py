"""Tensors of a model that is sharded with FSDP2: in pieces unless their group is running."""

from collections.abc import Iterable

from torch import Tensor, nn

from kanmeta.errors import ExecutionError
from kanmeta.meta import MetaLearner

__all__ = ["gathered", "is_sharded", "refuse_shards"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a piece of the tensor (a ``DTensor``)."""
    return hasattr(tensor, "full_tensor")  # torch.distributed.tensor is slow to import


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor, on every rank; other tensors as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def refuse_shards(
    label: str, prompts: Tensor, meta: MetaLearner, others: Iterable[nn.Module]
) -> None:
    """Raise ExecutionError if coefficients cannot be generated because something is in pieces.

    Args:
        label: name of the layer, for messages.
        prompts: of the layer.
        meta: meta-learner that it uses.
        others: layers that use it, too.
    """
    if is_sharded(prompts):
        raise ExecutionError(
            f"the prompts of {label} are sharded and not gathered now, so its coefficients cannot "
            "be generated. Call the whole model, whose forward gathers them; for other work "
            "kanmeta.save(model, path) and kanmeta.load the file into a model that is not sharded"
        )
    alone = not meta.gathered_with_model and any(
        type(layer).__name__.startswith("FSDP") and layer._modules.get("meta_learner") is meta
        for layer in others
    )
    if alone or is_sharded(meta.weight1):
        raise ExecutionError(
            f"the meta-learner of {label} was sharded with another layer, so it is not gathered "
            "for this one. Shard with kanmeta.fully_shard(model, parts) instead, which gathers "
            "meta-learners with the model itself"
        )
