"""Value, gradient and Laplacian of a B-spline KAN in one forward pass, exact, for any dimension.

A layer y_o = sum_i phi_oi(x_i) has no mixed second derivatives. So with the Jacobian J and the
Laplacian L of its inputs with respect to the network's inputs,

    J_o = sum_i phi'_oi(x_i) J_i
    L_o = sum_i phi'_oi(x_i) L_i + phi''_oi(x_i) |J_i|^2

which costs a few small matrix products a layer; automatic differentiation needs a pass a dimension.
Works on converted models.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kanmeta
from recipes.models import is_converted
from recipes.reference.b_spline import b_spline_basis

__all__ = [
    "edge_functions",
    "layer_coefficients",
    "spline_derivative",
    "value_gradient_laplacian",
]


def spline_derivative(x: Tensor, grid: Tensor, order: int, times: int) -> Tensor:
    """Derivative number ``times`` of all B-splines of degree ``order``, for distinct knots.

    B'_{j,k} = k (B_{j,k-1} / (t_{j+k} - t_j) - B_{j+1,k-1} / (t_{j+k+1} - t_{j+1}))

    Args and result: see :func:`b_spline_basis`.
    """
    if times == 0:
        return b_spline_basis(x, grid, order)
    knots = grid.T
    lower = spline_derivative(x, grid, order - 1, times - 1)
    scaled = lower * (order / (knots[order:] - knots[:-order]))
    return scaled[:, :-1] - scaled[:, 1:]


def _silu_derivatives(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(x)
    slope = s * (1 - s)
    return x * s, s + x * slope, slope * (2 + x * (1 - 2 * s))


def _features(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Base function and splines at ``x`` with two derivatives: ``(N, 1 + G + k, in)`` each."""
    base = _silu_derivatives(x)
    splines = (spline_derivative(x, layer.grid, layer.spline_order, m) for m in range(3))
    first, second, third = (
        torch.cat([b.unsqueeze(1), s], 1) for b, s in zip(base, splines, strict=True)
    )
    return first, second, third


def edge_functions(layer: Any, weight: Tensor, x: Tensor) -> Tensor:
    """Values of the functions of all edges of a layer at ``x`` (N,): ``(N, in, out)``.

    ``weight`` are its coefficients, see :func:`layer_coefficients`.
    """
    values, _, _ = _features(layer, x.unsqueeze(1).expand(-1, weight.shape[1]))
    return torch.einsum("nki,oik->nio", values, weight)


def layer_coefficients(model: nn.Module) -> Iterator[tuple[Any, Tensor]]:
    """Layers and their coefficients, base weight first: ``(out, in, 1 + G + k)``."""
    # Each tensor of a converted layer that is read would be generated on its own.
    generated = kanmeta.coefficients(model) if is_converted(model) else {}
    for n, layer in enumerate(cast(Iterable[Any], model.layers)):
        plain = generated.get(f"layers.{n}")
        if plain is None:
            plain = torch.cat([layer.base_weight.unsqueeze(-1), layer.spline_weight], -1)
        yield layer, plain


def value_gradient_laplacian(
    model: nn.Module, x: Tensor, axes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate a :class:`recipes.reference.efficient_kan.KAN` without ``spline_scaler``.

    Args:
        model: with a SiLU base; may be converted.
        x: points, ``(N, d)``.
        axes: differentiate along these inputs only, ``(m,)``; default: along all d.

    Returns:
        Values ``(N, out)``, first derivatives ``(N, m, out)``, sum of the second ones ``(N, out)``.
    """
    n, d = x.shape
    unit = torch.eye(d, dtype=x.dtype, device=x.device)
    jacobian = (unit if axes is None else unit[axes]).expand(n, -1, -1)
    laplacian = torch.zeros_like(x)
    for layer, weight in layer_coefficients(model):
        f, f1, f2 = _features(layer, x)
        flat = weight.transpose(1, 2).flatten(1)  # (out, K * in), as the features are laid out
        slopes = torch.einsum("nki,oik->nio", f1, weight)
        bent = f1 * laplacian.unsqueeze(1) + f2 * jacobian.square().sum(1).unsqueeze(1)
        x = F.linear(f.flatten(1), flat, getattr(layer, "bias", None))
        laplacian = F.linear(bent.flatten(1), flat)
        jacobian = jacobian @ slopes
    return x, jacobian, laplacian
