"""Basis functions of linear KAN layers: what an adapter says which of them a layer computes.

Values have the shape ``(rows, functions, inputs)``: inputs run fastest, so operations work on long
contiguous rows, and the last two dimensions flatten to what a matrix product needs. That a layer
does compute what its adapter says is checked on the layer itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor, nn

from kanmeta import derivatives, functions
from kanmeta.derivatives import Derivatives
from kanmeta.families import GAUSSIAN, SILU, SPLINE, Family
from kanmeta.functions import Evaluate
from kanmeta.spline_derivatives import Splines
from kanmeta.splines import spacing_of
from kanmeta.splines import splines as _splines

__all__ = ["Basis", "Branch", "Known", "by_formula", "elementwise", "gaussians", "splines"]


@dataclass(frozen=True)
class Known:
    """Functions of a layer's inputs, as they were when it was made.

    Attributes:
        evaluate: values, and what pulls gradients back.
        derivatives: of any order; None: by autograd, in blocks of rows.
        formula: finds :attr:`family`.
    """

    evaluate: Evaluate
    derivatives: Derivatives | None
    formula: Callable[[], Family | None]

    @cached_property
    def family(self) -> Family | None:
        """Their formula, if the kernels of a GPU have it: asked for on a GPU only."""
        return self.formula()


def by_formula(evaluate: Evaluate) -> Known:
    """Functions that only autograd differentiates, see :mod:`kanmeta.formulas`."""
    return Known(evaluate, None, lambda: None)


def elementwise(function: Callable[[Tensor], Tensor]) -> Known:
    """One function, ``function``, of every input: the base branch."""
    silu = function is F.silu or type(function) is nn.SiLU
    return Known(
        functions.elementwise(function),
        derivatives.Elementwise(function),
        lambda: Family(SILU) if silu else None,
    )


def gaussians(centres: Tensor, width: float) -> Known:
    """exp(-((x - centre) / width)^2) for each of ``centres``, ``(K,)``."""
    centres = centres.detach()

    def formula() -> Family | None:
        spacing = spacing_of(centres[:, None])
        first = float(centres[0])
        return None if spacing is None else Family(GAUSSIAN, len(centres), first, spacing, width)

    gaussian = functions.gaussians(centres, width)
    return Known(gaussian, derivatives.Gaussians(centres, width), formula)


def splines(grid: Tensor, order: int) -> Known:
    """B-splines of degree ``order`` on the knots of each input, ``grid`` of shape ``(in, T)``."""
    evaluate = _splines(grid, order)
    knots, spacing = evaluate.knots, evaluate.spacing

    def formula() -> Family | None:
        if spacing is None:
            return None
        return Family(SPLINE, len(knots) - 4, float(knots[2, 0]), spacing)

    return Known(evaluate, Splines(knots, order), formula)


def _unchanged(layer: nn.Module, x: Tensor) -> Tensor:
    return x


def _nothing_added(layer: nn.Module, y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True)
class Branch:
    """What the coefficients of one slot are multiplied with.

    Attributes:
        functions: ``layer -> Known``; None if the layer, with its options, computes others.
        argument: ``(layer, x (rows, in)) -> (rows, in)``: a norm before the functions.
    """

    functions: Callable[[nn.Module], Known | None]
    argument: Callable[[nn.Module, Tensor], Tensor] = _unchanged


@dataclass(frozen=True)
class Basis:
    """A linear layer y_o = sum_i sum_k w[o,i,k] B_k(x_i), k running over all slots.

    Attributes:
        branches: path of each slot -> its functions.
        bias: ``(layer, y (rows, out)) -> y``: what is added, so that nothing is kept of it.
        finish: the same for what follows, a norm and an activation; None: nothing.
    """

    branches: Mapping[str, Branch]
    bias: Callable[[nn.Module, Tensor], Tensor] = _nothing_added
    finish: Callable[[nn.Module, Tensor], Tensor] | None = None
