"""One job from its first values to its result file."""

import copy
import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import kanmeta
from recipes.checkouts import used_files
from recipes.engine import is_main
from recipes.job import Job, Place, Task
from recipes.loop import train
from recipes.models import meta_learners, save
from recipes.records import counts, hardware, read_json, versions, write_json
from recipes.tracking import peak_bytes

__all__ = ["execute", "model_of", "number", "trained"]


def execute(place: Place, job: Job, count: Callable[[int], object]) -> str:
    """Train, unless the result is there already, and record the result.

    Args:
        place: where.
        job: what.
        count: see :func:`recipes.loop.train`.

    Returns:
        A line for people.
    """
    file = place.result(job)
    if file.exists() and _is_done(before := read_json(file), job, place):
        count(job.epochs)
        return f"{_line(job, before)} (done before)"
    task: Task = _recipe(job).task(job, place)
    peak = _peak_of_a_step(task)
    state, weights = place.working(job, ".pt"), place.working(job, ".safetensors")
    key = json.dumps([job.content(), dict(place.code), dict(task.source), place.precision])
    value, curve = train(
        task, protocol=job.protocol, epochs=job.epochs, count=count, resume=state, key=key
    )
    if not is_main():
        return ""
    save(task.model, weights)
    content = {
        "metric": task.metric,
        "value": value,
        "best_epoch": curve.epoch + 1,
        "parameters": counts(task.model),
        "meta_learners": meta_learners(task.model),
        "file_bytes": weights.stat().st_size,
        "peak_bytes": peak,
        "seconds": round(curve.seconds, 2),
        "curve": {
            "train_loss": _short(curve.train_loss),
            "validation": _short(curve.validation),
            "test": _short(curve.test),
        },
        **task.more(),
        "job": job.content(),
        "notes": task.notes,
        "data": dict(task.source),
        "code": dict(place.code),
        "execution": {
            "precision": place.precision,
            "compiled": place.compiled,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        },
        "libraries": used_files() if job.library else {},
        "versions": versions(),
        "hardware": hardware(torch.device(place.device)),
    }
    write_json(file, content)
    state.unlink(missing_ok=True)
    return _line(job, content)


def _is_done(before: Mapping[str, Any], job: Job, place: Place) -> bool:
    """Whether a result is of this job in this precision; files without a precision are float32."""
    precision = before.get("execution", {}).get("precision", "no")
    return bool(before["job"] == job.content() and precision == place.precision)


def model_of(job: Job) -> nn.Module:
    """The model of a job with its first values, on the CPU."""
    model: nn.Module = _recipe(job).model(job)
    return model


def trained(job: Job, place: Place) -> nn.Module:
    """The model of a job as it was after its best epoch. Not for images in their own shape.

    Raises:
        FileNotFoundError: the job was not run here.
    """
    path = place.working(job, ".safetensors")
    if not path.exists():
        raise FileNotFoundError(
            f"no {path}: run python -m recipes.{job.recipe} --protocol {job.protocol} "
            f"--profile {job.profile} --only '{job.name}' first"
        )
    settings = {**job.config.get("settings", {}), "convert": None}
    plain = {**job.config, "convert": None, "settings": settings}
    model = model_of(replace(job, config=plain))
    if job.model.startswith("Meta"):
        return kanmeta.load(model, path)
    model.load_state_dict(load_file(path))
    return model


def _recipe(job: Job) -> Any:
    return importlib.import_module(f"recipes.{job.recipe}")


def number(value: float | None) -> str:
    """A metric for people: small ones with a power of ten."""
    if value is None:
        return "not finite"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.2e}"


def _line(job: Job, result: Mapping[str, Any]) -> str:
    return f"{job.stem}: {number(result['value'])} ({result['metric']})"


def _short(values: list[float | None]) -> list[float | None]:
    """Six digits are enough for a curve, and keep the files small."""
    return [None if value is None else float(f"{value:.6g}") for value in values]


def _peak_of_a_step(task: Task) -> int:
    """Most bytes of parameters, gradients and activations at once, forward and backward."""
    model = copy.deepcopy(task.model)
    tensors = [*model.parameters(), *model.buffers()]
    return peak_bytes(lambda: torch.autograd.backward(task.loss(model)), tensors)
