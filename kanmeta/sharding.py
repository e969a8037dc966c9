"""FSDP2 for converted models, whose meta-learners are used by layers of several groups."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from kanmeta.access import complete_layers
from kanmeta.errors import PlanError
from kanmeta.meta import MetaLearner

__all__ = ["fully_shard"]


def fully_shard(model: nn.Module, parts: Sequence[nn.Module], **options: Any) -> nn.Module:
    """Shard a converted model with FSDP2, each of ``parts`` a group of its own.

    The same as ``torch.distributed.fsdp.fully_shard`` on each part and then on the model, but
    the meta-learners belong to the group of the model itself, which stays gathered from the start
    of its forward to the end of its backward: layers of several parts may share them. They are a
    few hundred numbers each.

    >>> kanmeta.fully_shard(model, [*model.layers], mesh=mesh)          # doctest: +SKIP

    Args:
        model: a converted model; make its optimiser afterwards.
        parts: modules of ``model``, such as its layers or blocks; none is ``model`` itself.
        options: of ``torch.distributed.fsdp.fully_shard``: ``mesh``, ``mp_policy``, ... The
            model's own group is never resharded after its forward.

    Returns:
        ``model`` itself, sharded in place. Needs an initialised process group.

    Raises:
        NothingToConvertError: ``model`` is not converted.
        SharingError: a meta-learner in use is not part of ``model``.
        PlanError: one of ``parts`` is not a module below ``model``.
    """
    from torch.distributed.fsdp import fully_shard as shard  # slow to import

    places = {module: number for number, module in enumerate(model.modules())}
    for part in parts:
        if not places.get(part, 0):
            raise PlanError(
                f"parts name a {type(part).__name__} that is not a module below the model; "
                "expected some of its layers or blocks, such as [*model.layers]"
            )
    layers = complete_layers(model).values()
    with _owned_by(model, [binding.layer for binding in layers]) as metas:
        for part in sorted(parts, key=lambda part: -places[part]):  # what is inside first
            shard(part, **options)
        for number, meta in enumerate(metas):
            model.register_module(f"kanmeta_{number}", meta)
        shard(model, **{**options, "reshard_after_forward": False})
    for meta in metas:
        meta.gathered_with_model = True
    return model


@contextmanager
def _owned_by(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[list[MetaLearner]]:
    """Take the meta-learners out of the layers that own them, and put them back at the end.

    What is registered in ``model`` meanwhile is taken out again.
    """
    before = [(module, dict(module._modules)) for module in {model, *layers}]
    found = [layer._modules.pop("meta_learner", None) for layer in layers]
    try:
        yield [meta for meta in found if isinstance(meta, MetaLearner)]
    finally:
        for module, children in before:
            module._modules.clear()
            module._modules.update(children)
