"""First values of prompts and meta-learners. Pure functions on tensors.

Two schemes. ``"paper"``: Xavier-normal weights and prompts, zero biases, as in the released code.
``"match"``: the generated coefficients start with the mean and spread that the library's own
initialisation gave, in every layer and slot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanmeta.errors import PlanError
from kanmeta.meta import MetaLearner

__all__ = ["INITS", "LayerInit", "check_generator", "draw"]

INITS = ("match", "paper")

PROMPT_SPREAD = 0.1
"""Standard deviation of prompts under ``"match"``. With 1.0, steps of 1e-2 were too small."""

STEP = 4.0
"""Relative size of the steps of meta-learners under ``"match"``: 16 collapses at rate 1e-2."""

_BLOCK = 1 << 16  # edges generated at once while measuring: bounds the memory to BLOCK x hidden


@dataclass(frozen=True)
class LayerInit:
    """First values of a layer.

    Attributes:
        prompts: ``(*edge_shape, dim_z)``.
        scale, offset: ``(dim_w,)`` each.
        map: what grid updates have made of the basis coefficients, see :mod:`kanmeta.edits`:
            ``(*edge axes but o, k, k)``, or None before the first.
    """

    prompts: Tensor
    scale: Tensor
    offset: Tensor
    map: Tensor | None = None


def check_generator(generator: object) -> None:
    """Raise PlanError if it is neither None nor a CPU generator."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise PlanError(f"generator={generator!r}: expected a torch.Generator on the CPU, or None")
    if generator.device.type != "cpu":
        raise PlanError(
            f"generator is on {generator.device}; expected a CPU generator, so that a seed gives "
            "the same model on every device"
        )


def draw(
    scheme: str,
    meta: MetaLearner,
    coefficients: Sequence[Tensor],
    widths: Sequence[int],
    fan_ins: Sequence[int],
    generator: torch.Generator | None,
) -> list[LayerInit]:
    """Fill ``meta`` in place and return the first values of the layers that share it.

    Args:
        scheme: one of :data:`INITS`.
        meta: a fresh meta-learner, float32 or float64, on the CPU.
        coefficients: of each layer, ``(*edge_shape, dim_w)``: what the library started with.
        widths: coefficients of an edge in each slot; they add up to dim_w.
        fan_ins: of each layer, how many edges are summed into one output.
        generator: a CPU generator, or None for torch's default one.
    """
    with torch.no_grad(), torch.device("cpu"):  # whatever the default device is
        if scheme == "paper":
            return _paper(meta, coefficients, generator)
        return _match(meta, coefficients, widths, fan_ins, generator)


def _normal(like: Tensor, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=like.dtype)


def _paper(
    meta: MetaLearner, coefficients: Sequence[Tensor], generator: torch.Generator | None
) -> list[LayerInit]:
    for weight in (meta.weight1, meta.weight2):
        nn.init.xavier_normal_(weight, generator=generator)
    result = []
    for w in coefficients:
        edges = w[..., 0].numel()
        prompts = _normal(meta.weight1, (*w.shape[:-1], meta.dim_z), generator)
        prompts *= math.sqrt(2 / (edges + meta.dim_z))  # Xavier of an (E, dim_z) matrix
        scale = meta.weight1.new_ones(meta.dim_w)
        result.append(LayerInit(prompts, scale, torch.zeros_like(scale)))
    return result


def _match(
    meta: MetaLearner,
    coefficients: Sequence[Tensor],
    widths: Sequence[int],
    fan_ins: Sequence[int],
    generator: torch.Generator | None,
) -> list[LayerInit]:
    """Match mean and spread per layer and slot.

    Prompts are normal with a spread that suits learning rates of 1e-3 to 1e-2; W1 undoes the
    spread. How much a slot's coefficients should vary relative to 1/sqrt(fan_in), the natural unit
    of a layer, goes into the rows of W2 (geometric mean over the layers), and the rest, about
    STEP/(hidden sqrt(fan_in)), into the constant ``scale``. So an optimiser's step of size eta on
    M moves a layer's output by O(sqrt(fan_in) eta), however wide M is and however many edges share
    it. Without that a step moves all edges in common and the network collapses.

    M starts odd, M(-z) = -M(z): an edge and its opposite are equally easy to reach. Drawn freely,
    prompts of one sign can by chance have almost no effect (up to 1.7 points of accuracy lost).
    """
    for parameter in (meta.weight1, meta.weight2, meta.bias1):
        if parameter is not None:
            parameter.copy_(_normal(parameter, parameter.shape, generator))
    meta.weight1.div_(PROMPT_SPREAD * math.sqrt(meta.dim_z))
    meta.weight2.mul_(math.sqrt(meta.hidden) / STEP)
    _make_odd(meta)
    targets = [_moments(w.reshape(-1, w.shape[-1]), widths) for w in coefficients]
    units = [1 / math.sqrt(n) for n in fan_ins]
    for slot, rows in enumerate(torch.split(meta.weight2, list(widths))):
        ratios = [
            float(spread[slot]) / unit for (_, spread), unit in zip(targets, units, strict=True)
        ]
        rows.mul_(_geometric_mean(ratios))
    result = []
    for w, (mean, spread), unit in zip(coefficients, targets, units, strict=True):
        prompts = _normal(meta.weight1, (*w.shape[:-1], meta.dim_z), generator) * PROMPT_SPREAD
        z = prompts.reshape(-1, meta.dim_z)
        raw_mean, raw_spread = _moments(
            torch.cat([meta(b) for b in torch.split(z, _BLOCK)]), widths
        )
        # A slot that starts constant must still be able to move: it gets the layer's unit.
        scale = torch.where(
            (spread > 0) & (raw_spread > 0),
            spread / raw_spread,
            torch.full_like(spread, unit * STEP / meta.hidden),
        )
        offset = mean - scale * raw_mean
        repeats = torch.tensor(widths)
        result.append(
            LayerInit(prompts, scale.repeat_interleave(repeats), offset.repeat_interleave(repeats))
        )
    return result


def _make_odd(meta: MetaLearner) -> None:
    """Pair the hidden units: W1 and W2 with opposite sign, b1 equal, a unit without partner 0."""
    half = meta.hidden // 2
    meta.weight1[half : 2 * half] = -meta.weight1[:half]
    meta.weight2[:, half : 2 * half] = -meta.weight2[:, :half]
    if meta.bias1 is not None:
        meta.bias1[0].abs_()  # one pair is alive for every prompt, however few there are
        meta.bias1[half : 2 * half] = meta.bias1[:half]
    if meta.hidden > 1:
        meta.weight2[:, 2 * half :] = 0


def _moments(w: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each slot of ``w``, ``(E, dim_w)``."""
    parts = torch.split(w, list(widths), dim=-1)
    means = torch.stack([part.mean() for part in parts])
    return means, torch.stack([part.std(correction=0) for part in parts])


def _geometric_mean(values: Sequence[float]) -> float:
    positive = [v for v in values if v > 0]
    return math.exp(sum(map(math.log, positive)) / len(positive)) if positive else 0.0
