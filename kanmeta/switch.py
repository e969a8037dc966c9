"""Changing the mode of execution of a converted model."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from kanmeta import policy
from kanmeta.access import converted_layers
from kanmeta.errors import PlanError

__all__ = ["set_execution"]


def set_execution(
    model: nn.Module,
    execution: str,
    *,
    layers: str | Iterable[str] | None = None,
    budget: int | None = None,
) -> nn.Module:
    """Choose how converted layers run: what stays in memory between forward and backward.

    All modes compute the same function and the same gradients, of any order.

    >>> model = kanmeta.convert(KAN([64, 32, 10]))
    >>> kanmeta.set_execution(model, "auto", budget=1_000_000) is model
    True

    Args:
        model: a converted model.
        execution: ``"materialize"``: generate the coefficients and leave the rest to autograd.
            ``"regenerate"``: the meta-learner's hidden activations and the coefficients are
            computed again in backward.
            ``"stream"``: the layer runs in blocks of rows, again in backward, and only its input
            is kept; where rows depend on each other (batch norm in training), "regenerate".
            ``"auto"``: "materialize"; with a budget, per call, only where autograd keeps no more
            than that, else "stream".
        layers: glob pattern(s) of the layers' names; default: all.
        budget: bytes of scratch that a block may take; None chooses by the size of the layer. It
            is a property of the machine and is not stored in checkpoints.

    Returns:
        ``model`` itself.

    Raises:
        PlanError: there is no such mode; a pattern fits no layer; or "stream" was asked for a layer
            whose rows always depend on each other.
    """
    policy.check(execution)
    if budget is not None and (isinstance(budget, bool) or budget < 1):
        raise PlanError(f"budget={budget!r}: expected a positive number of bytes, or None")
    found = converted_layers(model)
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else [*layers]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise PlanError(f"layers={pattern!r} fits none of the layers {sorted(found)}")
    chosen = {n: b for n, b in found.items() if any(fnmatchcase(n, p) for p in patterns)}
    policy.check_layers(execution, {name: binding.spec for name, binding in chosen.items()})
    for binding in chosen.values():
        binding.execution, binding.budget = execution, budget
    return model
