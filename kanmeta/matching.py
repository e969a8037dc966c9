"""Distilling by gradient: a converted model is made to give the teacher's outputs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kanmeta.binding import Binding
from kanmeta.distill_data import Batches
from kanmeta.layer_metric import first_tensor
from kanmeta.losses import Loss
from kanmeta.rounded import RoundedPrompts
from kanmeta.schedule import warm_cosine
from kanmeta.transfer import put_back

__all__ = [
    "Objective",
    "Trained",
    "evaluating",
    "held_out_loss",
    "held_out_outputs",
    "match_outputs",
    "only_trained",
    "output_error",
    "relative",
    "train",
]

Objective = Callable[[tuple[Tensor, ...]], Tensor]
"""A batch, the model's positional arguments -> a number to be lowered."""

FEW_BIT_RATES = (1e-3, 3e-4)
"""Adam's rates of prompts and of meta-learners where prompts are rounded."""

_RATE, _ROUGH, _LEAST = 1e-3, 0.25, 0.1
"""Adam's rate elsewhere, the error of outputs below which it is less in proportion, least factor.

The error is relative to the outputs' spread. A step that moves outputs by more than they lack makes
them worse first.
"""

_WARM_UP = 50  # steps

_CHECK = 50  # steps between two looks at the held-out batches
_PATIENCE = 4  # looks without progress before it stops, once the rates have fallen
_FALLEN = 0.75  # share of the steps; before, large rates hide the progress that falling ones show


class Trained(NamedTuple):
    """What training gave: held-out loss before and after, and the step of the state that stays."""

    first: float
    best: float
    at: int
    steps: int

    def __str__(self) -> str:
        """For a report."""
        progress = f"held-out loss {self.first:.4g} -> {self.best:.4g}"
        return f"{progress}, best at step {self.at} of {self.steps}"


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode for a while; each module's own mode comes back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def match_outputs(
    student: nn.Module,
    teacher: nn.Module,
    layers: Mapping[str, Binding],
    data: Batches,
    loss: Loss,
    steps: int,
    tick: Callable[[], object],
    levels: int | None = None,
) -> str:
    """Train prompts and meta-learners so that the student's outputs are the teacher's.

    With ``levels``, prompts are rounded at every step to codebooks of so many entries, and stay so.
    """

    def objective(batch: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            target = first_tensor(teacher(*batch))
        return loss(first_tensor(student(*batch)), target)

    rates = FEW_BIT_RATES
    if levels is None:
        lacking = output_error(held_out_outputs(student, teacher, data), centred=True)
        rate = _RATE * max(_LEAST, min(1.0, lacking / _ROUGH))
        rates = rate, rate
    return str(train(list(layers.values()), objective, data, rates, steps, tick, levels))


@torch.no_grad()
def held_out_outputs(
    student: nn.Module, teacher: nn.Module, data: Batches
) -> list[tuple[Tensor, Tensor]]:
    """Outputs of student and teacher for each held-out batch."""
    return [(first_tensor(student(*b)), first_tensor(teacher(*b))) for b in data.held_out]


def output_error(outputs: Sequence[tuple[Tensor, Tensor]], centred: bool = False) -> float:
    """Relative error ||student - teacher|| / ||teacher|| of pairs of outputs.

    With ``centred`` it is relative to the teacher's outputs less their mean over the rows.
    """
    above = below = 0.0
    for ours, theirs in outputs:
        y = theirs.double()
        above += float((ours.double() - y).square().sum())
        below += float((y - y.mean(0, keepdim=True) if centred else y).square().sum())
    return relative(above, below)


def relative(squared: float, reference: float) -> float:
    """Relative error from squared sums; that of nothing is 0 where nothing was asked for."""
    if reference == 0:
        return 0.0 if squared == 0 else math.inf
    return math.sqrt(squared / reference)


def train(
    layers: Sequence[Binding],
    objective: Objective,
    data: Batches,
    rates: tuple[float, float],
    steps: int,
    tick: Callable[[], object],
    levels: int | None = None,
) -> Trained:
    """Adam on a cosine schedule; what was best on the held-out batches is what stays."""
    if steps == 0:
        loss_now = held_out_loss(objective, data)
        return Trained(loss_now, loss_now, 0, 0)
    prompts = list({id(b.prompts): b.prompts for b in layers}.values())
    metas = list({id(p): p for b in layers for p in b.meta_learner.parameters()}.values())
    everything = [*prompts, *metas]
    rounded = None if levels is None else RoundedPrompts(prompts, levels)
    if rounded is not None:
        rounded.write()
    trained = prompts if rounded is None else rounded.latent
    groups = [{"params": trained, "lr": rates[0]}, {"params": metas, "lr": rates[1]}]
    optimizer = torch.optim.Adam(groups)
    schedule = warm_cosine(optimizer, _WARM_UP, steps)
    best, at = held_out_loss(objective, data), 0
    first = best
    kept = [p.detach().clone() for p in everything]
    with ExitStack() as stack:
        stack.enter_context(only_trained(everything))
        # Also after an interruption.
        stack.callback(lambda: put_back(list(zip(everything, kept, strict=True))))
        batches = iter(data)
        for step in range(1, steps + 1):
            loss = objective(next(batches))
            optimizer.zero_grad()
            torch.autograd.backward(loss, inputs=everything)
            if rounded is not None:
                rounded.pass_gradients()
            optimizer.step()
            schedule.step()
            tick()
            if rounded is not None:
                rounded.write()
            if step % _CHECK == 0 or step == steps:
                now = held_out_loss(objective, data)
                if now < best:
                    best, at = now, step
                    kept[:] = [p.detach().clone() for p in everything]
                elif step - max(at, _FALLEN * steps) >= _PATIENCE * _CHECK:
                    break
    return Trained(first, best, at, steps)


@contextmanager
def only_trained(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let gradients reach ``parameters``, whatever they did before, and leave none behind."""
    before = [(p, p.requires_grad, p.grad) for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
        p.grad = None
    try:
        with torch.enable_grad():
            yield
    finally:
        for p, wanted, grad in before:
            p.grad = grad
            p.requires_grad_(wanted)


@torch.no_grad()
def held_out_loss(objective: Objective, data: Batches) -> float:
    """Mean over the held-out batches; infinite if it is no number."""
    losses = [float(objective(batch)) for batch in data.held_out]
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf
