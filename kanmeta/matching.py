"""Distilling by gradient: layers, then the whole model, are made to give the teacher's outputs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kanmeta.binding import Binding
from kanmeta.distill_data import Batches
from kanmeta.errors import PlanError
from kanmeta.layer_metric import Call, first_tensor, watching
from kanmeta.rounded import RoundedPrompts

__all__ = ["Loss", "evaluating", "layer_errors", "match_layers", "match_outputs", "resolve_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(student's output, teacher's output) -> a number."""

LAYER_RATES, OUTPUT_RATES, FEW_BIT_RATES = (3e-3, 1e-3), (1e-3, 1e-3), (1e-3, 3e-4)
"""Adam's rates of prompts and of meta-learners. Larger ones make outputs worse first."""

_WARM_UP = 50  # steps: Adam's first ones are too long, and the start is good

_CHECK = 50  # steps between two looks at the held-out batches
_PATIENCE = 4  # looks without progress before it stops, once the rates have fallen
_FALLEN = 0.75  # share of the steps; before, large rates hide the progress that falling ones show


def resolve_loss(loss: "str | Loss | None", output: Tensor) -> tuple[str, Loss]:
    """Name and function of the loss.

    None: ``"kl"`` for a matrix ``(N, C)`` with C >= 2, taken for class scores, else ``"mse"``.
    """
    if loss is None:
        loss = "kl" if output.ndim == 2 and output.shape[1] >= 2 else "mse"
    if loss == "kl":
        return "kl", kl
    if loss == "mse":
        return "mse", F.mse_loss
    if callable(loss):
        return getattr(loss, "__name__", type(loss).__name__), loss
    raise PlanError(f"loss={loss!r}: expected 'kl', 'mse', a function of two tensors, or None")


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last axis, mean over the rows."""
    classes = student.shape[-1]
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return F.kl_div(
        log_q.reshape(-1, classes),
        log_p.reshape(-1, classes),
        reduction="batchmean",
        log_target=True,
    )


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode for a while; each module's own mode comes back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
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

    rates = OUTPUT_RATES if levels is None else FEW_BIT_RATES
    return _train(list(layers.values()), objective, data, rates, steps, tick, levels)


def match_layers(
    teacher: nn.Module,
    layers: Mapping[str, Binding],
    data: Batches,
    steps: int,
    tick: Callable[[], object],
) -> str:
    """Train prompts and meta-learners so that each layer's output is that of the teacher's layer.

    Both get the teacher's inputs. The error is that of the layer's whole function: in the metric of
    the Gram matrix of all basis functions of all inputs, correlations between inputs included.
    """
    with watching(teacher, list(layers)) as calls:

        def objective(batch: tuple[Tensor, ...]) -> Tensor:
            with torch.no_grad():
                teacher(*batch)
            terms = [relative_error(layers[n].layer, call) for n in calls for call in calls[n]]
            for made in calls.values():
                made.clear()
            if not terms:
                raise PlanError("the teacher's forward called none of the layers")
            return torch.stack(terms).sum()

        return _train(list(layers.values()), objective, data, LAYER_RATES, steps, tick)


def relative_error(layer: nn.Module, call: Call) -> Tensor:
    """||y - y_teacher||^2 / ||y_teacher||^2 of a layer at the arguments of ``call``."""
    error = (first_tensor(layer(*call.args, **call.kwargs)) - call.output).square().sum()
    return error / call.output.square().sum().clamp(min=torch.finfo(error.dtype).tiny)


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
                    above[name] += float((y - call.output).square().sum())
                    below[name] += float(call.output.square().sum())
                made.clear()
    return {n: math.sqrt(above[n] / below[n]) for n in layers if below[n] > 0}


def _train(
    layers: Sequence[Binding],
    objective: Callable[[tuple[Tensor, ...]], Tensor],
    data: Batches,
    rates: tuple[float, float],
    steps: int,
    tick: Callable[[], object],
    levels: int | None = None,
) -> str:
    """Adam on a cosine schedule; what was best on the held-out batches is what stays."""
    if steps == 0:
        return ""
    prompts = list({id(b.prompts): b.prompts for b in layers}.values())
    metas = list({id(p): p for b in layers for p in b.meta_learner.parameters()}.values())
    everything = [*prompts, *metas]
    rounded = None if levels is None else RoundedPrompts(prompts, levels)
    if rounded is not None:
        rounded.write()
    trained = prompts if rounded is None else rounded.latent
    groups = [{"params": trained, "lr": rates[0]}, {"params": metas, "lr": rates[1]}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / _WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    best, at = _held_out(objective, data), 0
    first = best
    kept = [p.detach().clone() for p in everything]
    with ExitStack() as stack:
        stack.enter_context(_only_trained(everything))
        stack.callback(_put, everything, kept)  # also after an interruption
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
                now = _held_out(objective, data)
                if now < best:
                    best, at = now, step
                    kept[:] = [p.detach().clone() for p in everything]
                elif step - max(at, _FALLEN * steps) >= _PATIENCE * _CHECK:
                    break
    return f"held-out loss {first:.4g} -> {best:.4g}, best at step {at} of {steps}"


@contextmanager
def _only_trained(parameters: Sequence[Tensor]) -> Iterator[None]:
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
def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


@torch.no_grad()
def _held_out(objective: Callable[[tuple[Tensor, ...]], Tensor], data: Batches) -> float:
    losses = [float(objective(batch)) for batch in data.held_out]
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf
