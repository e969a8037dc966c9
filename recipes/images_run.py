"""One training run of :mod:`recipes.images_fc`: build, convert, train, record, resumable."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

import kanmeta
from recipes.data import load_images
from recipes.records import counts, hardware, read_json, versions, write_json
from recipes.reference import efficient_kan, fast_kan
from recipes.training import Pixels, fit

__all__ = ["BASES", "Place", "Run", "Settings", "build", "execute", "optimizer"]

INPUTS, CLASSES = 28 * 28, 10

BASES: dict[str, Callable[..., nn.Module]] = {"kan": efficient_kan.KAN, "fastkan": fast_kan.FastKAN}


@dataclass(frozen=True)
class Settings:
    """How a model is built and trained, but for data, widths, seed and epochs.

    Attributes:
        base: key of :data:`BASES`.
        options: of its constructor.
        convert: arguments of ``kanmeta.convert``, or None for the model as it is.
        lr: learning rate of everything that is neither a prompt nor a meta-learner.
        prompt_lr, meta_lr: of prompts and meta-learners; None where there are none.
        weight_decay: AdamW's, of all parameters but prompts; in models that are not converted,
            not of biases and norms either.
        prompt_weight_decay: of prompts; None where there are none.
        batch: rows a step.
    """

    base: str
    options: Mapping[str, Any]
    convert: Mapping[str, Any] | None
    lr: float
    prompt_lr: float | None
    meta_lr: float | None
    weight_decay: float
    prompt_weight_decay: float | None
    batch: int


@dataclass(frozen=True)
class Run:
    """One training run; ``name`` tells it apart from the others of its ``grid``.

    Attributes:
        model: what the tables call it.
        dataset: key of :data:`recipes.data.DATASETS`.
        hidden: widths of the hidden layers.
        seed: of the first values and of the order of the images.
    """

    grid: str
    name: str
    model: str
    dataset: str
    hidden: tuple[int, ...]
    seed: int
    epochs: int
    settings: Settings

    def config(self) -> dict[str, Any]:
        """Everything, as JSON gives it back."""
        config: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return config


@dataclass(frozen=True)
class Place:
    """Where a run happens.

    Attributes:
        data: see ``root`` of :func:`recipes.data.load_images`.
        device: torch's name of it.
        out: results go to ``out/results/images_fc``, what a resumed run needs and trained models
            to ``out/runs/images_fc``.
        code: :func:`recipes.records.code_state` when the program started.
        protocol: notes to be recorded with the result.
    """

    data: Path | None
    device: str
    out: Path
    code: Mapping[str, Any]
    protocol: tuple[str, ...]


def build(run: Run) -> nn.Module:
    """Return the run's model on the CPU with its first values; torch's generator is left alone."""
    settings = run.settings
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        model = BASES[settings.base]([INPUTS, *run.hidden, CLASSES], **settings.options)
    if settings.convert is not None:
        generator = torch.Generator().manual_seed(run.seed)
        kanmeta.convert(model, **settings.convert, generator=generator)
    return model


def optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW with the rates of ``settings``."""
    groups: list[dict[str, Any]]
    if settings.convert is None:
        # No decay of norms and biases: with the 1.0 that suits the FastKAN it costs 2.5 % accuracy.
        groups = list(param_groups_weight_decay(model, settings.weight_decay))
    else:
        groups = kanmeta.param_groups(
            model,
            lr=settings.lr,
            prompt_lr=settings.prompt_lr,
            meta_lr=settings.meta_lr,
            weight_decay=settings.weight_decay,
            prompt_weight_decay=settings.prompt_weight_decay,
        )
    decay = settings.weight_decay
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=decay, fused=True)


def execute(place: Place, run: Run, count: Callable[[int], object]) -> str:
    """Train, unless the result is there already, and record the result.

    Args:
        place: where.
        run: what.
        count: see ``on_epoch`` of :func:`recipes.training.fit`.

    Returns:
        A line for people.
    """
    file = place.out / "results" / "images_fc" / run.grid / f"{run.name}.json"
    if file.exists() and (before := read_json(file))["config"] == run.config():
        count(run.epochs)
        return f"{run.name}: {before['test_accuracy']:.2f} % (done before)"
    data, source = _data(run.dataset, place.data, place.device)
    model = build(run).to(place.device)
    working = place.out / "runs" / "images_fc" / run.grid
    state, weights = working / f"{run.name}.pt", working / f"{run.name}.safetensors"
    curve = fit(
        model,
        data,
        optimizer(model, run.settings),
        epochs=run.epochs,
        batch=run.settings.batch,
        seed=run.seed,
        on_epoch=count,
        resume=state,
        key=json.dumps([run.config(), place.code, source]),
    )
    _save(model, weights, run.settings)
    write_json(
        file,
        {
            "test_accuracy": curve.test_accuracy[-1],
            "parameters": counts(model),
            "meta_learners": _meta_learners(model, run.settings),
            "file_bytes": weights.stat().st_size,
            "seconds": round(curve.seconds, 2),
            "curve": {"train_loss": curve.train_loss, "test_accuracy": curve.test_accuracy},
            "config": run.config(),
            "protocol": place.protocol,
            "data": source,
            "code": place.code,
            "versions": versions(),
            "hardware": hardware(torch.device(place.device)),
        },
    )
    state.unlink()
    return f"{run.name}: {curve.test_accuracy[-1]:.2f} %"


@cache
def _data(dataset: str, root: Path | None, device: str) -> tuple[Pixels, dict[str, str]]:
    images = load_images(dataset, root)
    source = {"name": dataset, "folder": str(images.folder), "sha256": images.fingerprint()}
    return Pixels.of(images, device), source


def _save(model: nn.Module, path: Path, settings: Settings) -> None:
    if settings.convert is None:
        save_file(model.state_dict(), path)
    else:
        kanmeta.save(model, path)


def _meta_learners(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    if settings.convert is None:
        return []
    return [
        {
            "layers": len(meta.bindings),
            "dim_z": meta.dim_z,
            "hidden": meta.hidden,
            "dim_w": meta.dim_w,
            "bias": meta.has_bias,
            "activation": meta.activation,
        }
        for meta in kanmeta.meta_learners(model).values()
    ]
