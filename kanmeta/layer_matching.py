"""Distilling layer by layer: each is made to give what the teacher's gives for the same inputs."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kanmeta import edge_descent
from kanmeta.binding import Binding
from kanmeta.distill_data import Batches
from kanmeta.errors import PlanError
from kanmeta.layer_metric import Call, first_tensor, watching
from kanmeta.linear_code import squared_error
from kanmeta.matching import held_out_loss, train
from kanmeta.transfer import put_back

__all__ = ["layer_errors", "match_layers", "relative_error"]

_RATES = (3e-3, 1e-3)  # Adam's, of prompts and of meta-learners


def match_layers(
    teacher: nn.Module,
    layers: Mapping[str, Binding],
    data: Batches,
    steps: int,
    tick: Callable[[], object],
    search: bool = True,
) -> str:
    """Train prompts and meta-learners so that each layer's output is that of the teacher's layer.

    Both get the teacher's inputs. The error is that of the layer's whole function: in the metric of
    the Gram matrix of all basis functions of all inputs, correlations between inputs included.
    With ``search``, and where layers allow it, a search for better places of the prompts follows
    the first half of the steps and each of the quarters after it, see :mod:`kanmeta.edge_descent`.
    Prompts of few bits would leave their codebooks by it.
    """
    everything = list(layers.values())

    def objective(batch: tuple[Tensor, ...]) -> Tensor:
        with watching(teacher, list(layers)) as calls, torch.no_grad():
            teacher(*batch)
        terms = [relative_error(layers[n].layer, call) for n in calls for call in calls[n]]
        if not terms:
            raise PlanError("the teacher's forward called none of the layers")
        return torch.stack(terms).sum()

    searched = edge_descent.searchable(teacher, layers, data) if search else {}
    if not searched:
        return str(train(everything, objective, data, _RATES, steps, tick))
    turns, helped = [], set[str]()
    for part in (steps - 2 * (steps // 4), steps // 4, steps // 4):
        turns.append(train(everything, objective, data, _RATES, part, tick))
        helped |= _search(teacher, searched, data)
    best = held_out_loss(objective, data)
    searches = f"searches for better prompts helped in {len(helped)} of {len(layers)} layers"
    return f"held-out loss {turns[0].first:.4g} -> {best:.4g}, {searches}"


def _search(teacher: nn.Module, layers: Mapping[str, Binding], data: Batches) -> set[str]:
    """Search for better prompts; names of the layers whose held-out error is less for it.

    The prompts of the others are put back.
    """
    before = layer_errors(teacher, layers, data)
    prompts = {name: (b.prompts, b.prompts.detach().clone()) for name, b in layers.items()}
    helped: set[str] = set()
    try:
        edge_descent.search(teacher, layers, data)
        after = layer_errors(teacher, layers, data)
        helped = {name for name, error in after.items() if error < before[name]}
    finally:  # also after an interruption
        put_back([pair for name, pair in prompts.items() if name not in helped])
    return helped


def relative_error(layer: nn.Module, call: Call) -> Tensor:
    """||y - y_teacher||^2 / ||y_teacher||^2 of a layer at the arguments of ``call``.

    Where y_teacher is zero throughout, the mean square of y.
    """
    y, goal = first_tensor(layer(*call.args, **call.kwargs)), call.output
    if not goal.numel():  # no row was sent here
        return y.sum()
    largest = goal.abs().amax()
    if not largest:
        return y.square().mean()
    # Divided first, and means for sums: neither overflows.
    return ((y - goal) / largest).square().mean() / (goal / largest).square().mean()


@torch.no_grad()
def layer_errors(
    teacher: nn.Module, layers: Mapping[str, Binding], data: Batches
) -> dict[str, float]:
    """Relative error of each layer's output, held-out batches; of the layers that are called."""
    above: dict[str, float] = dict.fromkeys(layers, 0.0)
    below: dict[str, float] = dict.fromkeys(layers, 0.0)
    with watching(teacher, list(layers)) as calls:
        for batch in data.held_out:
            teacher(*batch)
            for name, made in calls.items():
                for call in made:
                    y = first_tensor(layers[name].layer(*call.args, **call.kwargs))
                    above[name] += squared_error(y, call.output)
                    below[name] += float(call.output.double().square().sum())
                made.clear()
    return {n: math.sqrt(above[n] / below[n]) for n in layers if below[n] > 0}
