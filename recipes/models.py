"""Networks by name, their conversion, their optimiser, and the file that keeps a trained one."""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

import kanmeta
from kanmeta.errors import LargerModelWarning, NothingToConvertError
from recipes import library as real
from recipes.reference import efficient_kan, fast_kan, wav_kan
from recipes.reference.conv_fast_kan import FastKANConv2DLayer
from recipes.reference.conv_gram import KAGNConv2DLayer
from recipes.reference.conv_kan import KANConv2DLayer
from recipes.reference.conv_net import conv_net
from recipes.reference.conv_poly import KALNConv2DLayer
from recipes.vit_net import vit

__all__ = [
    "BASES",
    "CONVOLUTIONS",
    "Settings",
    "build",
    "is_converted",
    "meta_learners",
    "optimizer",
    "save",
]

CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "KANConv": KANConv2DLayer,
    "FastKANConv": FastKANConv2DLayer,
    "KALNConv": KALNConv2DLayer,
    "KAGNConv": KAGNConv2DLayer,
}


BASES: dict[str, Callable[..., nn.Module]] = {
    "kan": efficient_kan.KAN,
    "fastkan": fast_kan.FastKAN,
    "wavkan": wav_kan.KAN,
    "vit": vit,
    **{kind: partial(conv_net, layer) for kind, layer in CONVOLUTIONS.items()},
}
"""Constructors: widths, inputs first and outputs last, then options. Of
images: channels and classes, then ``depth`` and others."""


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


def build(
    base: str,
    widths: tuple[int, ...],
    options: Mapping[str, Any],
    convert: Mapping[str, Any] | None,
    seed: int,
    dtype: torch.dtype = torch.float32,
    library: bool = False,
) -> nn.Module:
    """Return a model on the CPU with its first values; torch's generator is left alone.

    A plain model and its conversion start from the same values of everything that both have.

    Args:
        base, widths, options: key of :data:`BASES` and arguments of the constructor.
        convert: arguments of ``kanmeta.convert``, or None for the model as it is.
        seed: of the first values.
        dtype: of all parameters.
        library: take the real library's layers, see :mod:`recipes.library`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        bases = {**BASES, **real.constructors(Path(os.environ[real.FOLDER]))} if library else BASES
        model = bases[base](widths, **options).to(dtype)
    if convert is not None:
        with warnings.catch_warnings():  # tables show parameters beside each other
            warnings.simplefilter("ignore", LargerModelWarning)
            generator = torch.Generator().manual_seed(seed)
            kanmeta.convert(model, **convert, generator=generator)
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


def is_converted(model: nn.Module) -> bool:
    """Whether ``model`` has converted layers."""
    try:
        kanmeta.prompts(model)
    except NothingToConvertError:
        return False
    return True


def save(model: nn.Module, path: Path) -> None:
    """Write the weights: kanmeta's file for a converted model, else its ``state_dict``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_converted(model):
        kanmeta.save(model, path)
    else:
        save_file(model.state_dict(), path)


def meta_learners(model: nn.Module) -> list[dict[str, Any]]:
    """Sizes of the meta-learners, for a result file."""
    if not is_converted(model):
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
