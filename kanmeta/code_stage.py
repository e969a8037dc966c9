"""From the coefficients of a cluster's layers to prompts and a meta-learner."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from kanmeta import code_fit, code_start
from kanmeta.binding import Binding
from kanmeta.errors import PlanError
from kanmeta.initialise import PROMPT_SPREAD, STEP
from kanmeta.linear_code import LinearCode, blocks, linear_code, squared_error
from kanmeta.meta import MetaLearner

__all__ = ["Coded", "fit", "layer_error", "linear", "values"]


class Coded(NamedTuple):
    """What to write into a cluster: in the coordinates of ``axes``, see :mod:`kanmeta.code_fit`."""

    axes: LinearCode
    meta: MetaLearner
    codes: list[Tensor]
    constant: Tensor


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """The caller's default device and autocast are for models, not for coefficients."""
    known = torch.amp.is_autocast_available(device.type)
    off = torch.autocast(device.type, enabled=False) if known else nullcontext()
    with torch.device("cpu"), off:
        yield


def linear(
    layers: Sequence[Binding], coefficients: Sequence[Tensor], metric: Tensor | None
) -> Coded:
    """Find the best linear code of layers that share a meta-learner, as such a meta-learner.

    Args:
        layers: of the cluster.
        coefficients: of each, ``(E, dim_w)``.
        metric: see :func:`kanmeta.linear_code.linear_code`.

    Raises:
        PlanError: the meta-learner is too narrow for a linear code, or a coefficient is not finite.
    """
    meta = layers[0].meta_learner
    needed = min(meta.dim_z, meta.dim_w)
    if meta.hidden < needed:
        raise PlanError(
            f"hidden={meta.hidden} is too narrow for {needed} numbers per edge: a linear code "
            f"needs hidden >= min(dim_z, dim_w) = {needed}; {2 * needed} or more is better"
        )
    for binding, w in zip(layers, coefficients, strict=True):
        if not all(bool(w[rows].isfinite().all()) for rows in blocks(len(w))):
            raise PlanError(
                f"coefficients of the teacher's {binding.name or '(root)'} are not finite"
            )
    exact = meta.dim_z >= meta.dim_w  # rounding is smallest without a metric
    work = torch.float64 if coefficients[0].dtype == torch.float64 else torch.float32
    with _undisturbed(coefficients[0].device):
        found = linear_code(coefficients, meta.dim_z, None if exact else metric)
        axes = found.axes.to(work)
        codes = [
            torch.cat([found.targets(w[rows], i).to(work) @ axes for rows in blocks(len(w))])
            for i, w in enumerate(coefficients)
        ]
        unit, codes, constant = code_start.start(
            axes, codes, meta.dim_z, meta.hidden, meta.activation, meta.has_bias
        )
    return Coded(found, unit, codes, constant)


def fit(
    coded: Coded,
    coefficients: Sequence[Tensor],
    steps: int,
    generator: torch.Generator | None,
    tick: Callable[[], object],
) -> None:
    """Improve a linear code that is not exact, in place; see :func:`kanmeta.code_fit.improve`.

    Args:
        coded: of :func:`linear`.
        coefficients: what it was made of.
        steps, generator, tick: of the fit.
    """
    if coded.meta.dim_z >= coded.meta.dim_w:
        return

    def targets(layer: int, rows: slice | Tensor) -> Tensor:
        x = coded.axes.targets(coefficients[layer][rows], layer)
        return x.to(coded.constant) - coded.constant

    with _undisturbed(coded.constant.device):
        code_fit.improve(coded.meta, coded.codes, targets, steps, generator, tick)


@torch.no_grad()
def values(layers: Sequence[Binding], coded: Coded) -> list[tuple[Tensor, Tensor]]:
    """Tensors of converted layers and of their meta-learner, each with its value for a code.

    The prompts get the spread, and the constant ``scale`` the size, that suit training; see
    :func:`kanmeta.initialise.draw`. Both are powers of two: nothing is rounded by them.
    """
    meta, unit, axes = layers[0].meta_learner, coded.meta, coded.axes
    fan_in = math.exp(sum(math.log(b.spec.fan_in) for b in layers) / len(layers))
    scale = 2.0 ** round(math.log2(STEP / (meta.hidden * math.sqrt(fan_in))))
    spread = 2.0 ** round(math.log2(PROMPT_SPREAD))
    back = axes.inverse * axes.spread  # w = mean + x @ back
    found: list[tuple[Tensor, Tensor]] = [
        (meta.weight1, unit.weight1 / spread),
        (meta.weight2, (back.T @ unit.weight2.to(back)) / scale),
    ]
    if meta.bias1 is not None and meta.bias2 is not None:
        assert unit.bias1 is not None
        assert unit.bias2 is not None
        found += [
            (meta.bias1, unit.bias1),
            (meta.bias2, (unit.bias2.to(back) @ back) / scale),
        ]
    for binding, mean, u in zip(layers, axes.means, coded.codes, strict=True):
        layer_scale, offset = binding.layer.coefficient_scale, binding.layer.coefficient_offset
        assert isinstance(layer_scale, Tensor)
        assert isinstance(offset, Tensor)
        found += [
            (binding.prompts, (u * spread).view(binding.prompts.shape)),
            (layer_scale, torch.full_like(layer_scale, scale)),
            (offset, mean + coded.constant.to(back) @ back),
        ]
    return found


@torch.no_grad()
def layer_error(binding: Binding, coefficients: Tensor) -> float:
    """Sum of squared differences of the generated coefficients from ``(E, dim_w)``."""
    z = binding.prompts.reshape(-1, binding.prompts.shape[-1])
    constants = binding.layer.coefficient_scale, binding.layer.coefficient_offset
    total = 0.0
    with _undisturbed(z.device):
        if binding.map is not None:
            return squared_error(binding.coefficients().reshape(coefficients.shape), coefficients)
        for rows in blocks(len(z)):
            made = binding.meta_learner(z[rows], *constants)
            total += float((made.double() - coefficients[rows].double()).square().sum())
    return total
