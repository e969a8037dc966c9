"""Teachers, students and files of :mod:`recipes.distill_images`."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kanmeta
from recipes.images_run import BASES, CLASSES, INPUTS, optimizer
from recipes.images_settings import KAN, METAKAN
from recipes.training import Pixels, accuracy, fit

__all__ = [
    "WIDTHS",
    "build",
    "distilled",
    "from_scratch",
    "scratch_options",
    "stored",
    "teacher",
    "teacher_options",
]

WIDTHS = (INPUTS, 32, CLASSES)
EPOCHS = 20  # of teachers and of models trained from scratch, as in images_fc
UNLABELLED = 100 * 128  # images
EPOCH_STEPS = 469  # of 128 images
TUNING_STEPS = 4 * EPOCH_STEPS  # of codes and codebooks
# Width of the meta-learners of distilled models, one a layer. At a seed of its own, 3, held-out
# outputs agree better than with 64 units; without data those of images do with twice as many.
HIDDEN, HIDDEN_BLIND = 256, 512


def build(options: dict[str, Any]) -> nn.Module:
    """An unconverted model, with first values from torch's global generator."""
    return BASES["kan"](list(WIDTHS), **options)


def _trained(model: nn.Module, data: Pixels, settings: Any, seed: int) -> nn.Module:
    fit(model, data, optimizer(model, settings), epochs=EPOCHS, batch=settings.batch, seed=seed)
    return model


def _seeded(options: dict[str, Any], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(options)


def teacher(path: Path, data: Pixels, seed: int, grid: int = 5) -> nn.Module:
    """The unconverted model in ``path``, which is trained and written first if there is none."""
    model = _seeded(teacher_options(grid), seed)
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        _trained(model, data, KAN, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model


def from_scratch(path: Path, data: Pixels, seed: int, grid: int = 5) -> nn.Module:
    """The converted model of images_fc with the fewest hidden units, trained from scratch.

    Without biases and with one number an edge, two hidden units do what 256 do.
    """
    options = scratch_options(grid)
    settings = replace(METAKAN, options=options)
    model = _seeded(options, seed)
    if path.exists():
        kanmeta.load(model, path)
    else:
        generator = torch.Generator().manual_seed(seed)
        kanmeta.convert(model, **(settings.convert or {}), generator=generator)
        _trained(model, data, settings, seed)
        kanmeta.save(model, path)
    return two_units(model, kanmeta.convert(build(options), hidden=2, bias=False))


def teacher_options(grid: int) -> dict[str, Any]:
    """Options of the networks that are trained as they are."""
    return {**KAN.options, "grid_size": grid}


def scratch_options(grid: int) -> dict[str, Any]:
    """Options of the networks that are converted before they are trained."""
    return {**METAKAN.options, "grid_size": grid}


@torch.no_grad()
def two_units(model: nn.Module, small: nn.Module) -> nn.Module:
    """Give ``small``, converted with two hidden units, the function of ``model``, exactly."""
    (wide,), (narrow,) = (kanmeta.meta_learners(m).values() for m in (model, small))
    w = wide.weight1
    state = {n: t for n, t in model.state_dict().items() if "meta_learner" not in n}
    small.load_state_dict(state, strict=False)
    narrow.weight1.copy_(torch.tensor([[1.0], [-1.0]]))
    narrow.weight2.copy_(wide.weight2 @ torch.cat([w.relu(), (-w).relu()], dim=1))
    return small


def stored(
    model: nn.Module,
    options: dict[str, Any],
    data: Pixels,
    images: Tensor | None,
    bits: float,
    to: Path,
) -> dict[str, Any]:
    """Bytes and accuracy of the file, before and, given images, after tuning codes and codebooks.

    Widths between those of files are only trained: 3.33 are 10 numbers a codebook, in 4 bits.
    """
    width = next(b for b in (2, 3, 4, 8, 16) if b >= bits)

    def saved(student: nn.Module) -> tuple[int, float]:
        # Not in half precision: an error of the meta-learner is common to all edges and adds up.
        kanmeta.save(student, to, prompt_bits=width)
        fresh = kanmeta.load(build(options), to).to(data.labels.device)
        return to.stat().st_size, accuracy(fresh, data)

    row: dict[str, Any] = {"bits": bits}
    if width == bits:
        row["bytes"], row["test_accuracy"] = saved(model)
    if images is not None and bits < 8:
        tuned = copy.deepcopy(model)
        kanmeta.distill(
            tuned,
            model,
            data=images,
            from_student=True,
            prompt_bits=bits,
            steps=TUNING_STEPS,
            generator=torch.Generator().manual_seed(0),
        )
        row["tuned_bytes"], row["tuned_accuracy"] = saved(tuned)
    return row


def distilled(
    source: nn.Module, data: Pixels, dim_z: int, what: str, seed: int, grid: int = 5
) -> tuple[nn.Module, kanmeta.DistillReport]:
    """A student with ``dim_z`` numbers an edge of the teacher ``source``."""
    generator = torch.Generator().manual_seed(seed)
    student = kanmeta.convert(
        build(teacher_options(grid)),
        clusters="layer",
        dim_z=dim_z,
        hidden=HIDDEN_BLIND if what == "normal" else HIDDEN,
        generator=generator,
    ).to(data.labels.device)
    rows = torch.randperm(data.train, generator=generator)
    arguments: dict[str, Any] = {"fit_steps": 4000, "layer_steps": 1000, "steps": 1000}
    if what == "100 batches":
        arguments["data"] = data.inputs(rows[:UNLABELLED].to(data.labels.device))
    elif what == "normal":
        arguments |= {"data": "normal", "layer_steps": 2000, "steps": 2000}
    elif what == "2 epochs":
        arguments["data"] = data.inputs(rows.to(data.labels.device))
        arguments["steps"] = 2 * EPOCH_STEPS
    report = kanmeta.distill(student, source, generator=generator, **arguments)
    return student, report
