"""The metric in which the coefficients of a layer are compared: the Gram matrix of its basis."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kanmeta import edge_functions
from kanmeta.binding import Binding
from kanmeta.distill_data import Batches
from kanmeta.layer_metric import Call, gram, standard_call, watching

__all__ = ["measured", "pooled"]

_CALLS = 4  # batches that a matrix is measured on


@torch.no_grad()
def measured(
    teacher: nn.Module,
    layers: Mapping[str, Binding],
    batches: Batches | None,
    standard: bool,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Gram matrices ``(dim_w, dim_w)`` of the layers that have one.

    Args:
        teacher: an unconverted model.
        layers: converted ones of the same names.
        batches: inputs of the model, or None.
        standard: without them: whether every layer's inputs are taken for standard normal.
        generator: CPU generator; default: torch's global one.
    """
    found = {}
    for name, made in _calls(teacher, layers, batches, standard, generator).items():
        layer, spec = teacher.get_submodule(name), layers[name].spec
        matrix = gram(layer, spec, made, generator)
        if matrix is None:  # a norm or an activation after the sums, maybe
            matrix = edge_functions.gram(layer, spec, made)
        if matrix is not None:
            found[name] = matrix
    return found


def _calls(
    teacher: nn.Module,
    layers: Mapping[str, Binding],
    batches: Batches | None,
    standard: bool,
    generator: torch.Generator | None,
) -> dict[str, list[Call]]:
    """Calls to measure on, of the layers that have any, in the layers' order."""
    if batches is not None:
        with watching(teacher, list(layers)) as calls:
            for batch in batches.held_out[:_CALLS]:
                teacher(*batch)
            return {name: list(made) for name, made in calls.items() if made}
    if not standard:
        return {}
    found = {
        name: standard_call(teacher.get_submodule(name), b.spec, generator)
        for name, b in layers.items()
    }
    return {name: [call] for name, call in found.items() if call is not None}


def pooled(metrics: Sequence[Tensor | None]) -> Tensor | None:
    """Mean of the layers' metrics, each of trace 1; None where one has none."""
    known = [m / m.trace() for m in metrics if m is not None]
    return torch.stack(known).mean(0) if len(known) == len(metrics) else None
