"""B-spline KAN layers with the names and layouts of efficient-kan.

phi_oi(x) = base_weight[o,i] silu(x) + spline_scaler[o,i] sum_k spline_weight[o,i,k] B_k(x)
y_o       = bias[o] + sum_i phi_oi(x_i)

B_k are the B-splines of degree ``spline_order`` on a grid of its own for each input (KAN, arXiv
2404.19756, Sec. 2.4). Differences from the library: ``bias`` (MetaKAN's Table 5 counts one number
per output node and no ``spline_scaler``); ``update_grid`` keeps the function where there is a
``spline_scaler`` too; repeated knots give no NaN.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.reference.b_spline import adapted_grid, b_spline_basis, fit_coefficients

__all__ = ["KAN", "KANLinear"]


class KANLinear(nn.Module):
    """One layer; see the module's docstring for the formula.

    Args:
        in_features, out_features: number of inputs and outputs.
        grid_size: intervals G of the grid between the ends of ``grid_range``.
        spline_order: degree k of the splines. An edge has G + k spline coefficients.
        scale_noise: the splines start as noise of this amplitude, divided by G, at the knots.
        scale_base, scale_spline: as in the library, they enter the first values as
            kaiming_uniform(a = sqrt(5) scale) of ``base_weight`` and ``spline_scaler``, and
            ``scale_spline`` as a factor of the splines where there is no ``spline_scaler``.
        enable_standalone_scale_spline: whether ``spline_scaler`` exists.
        base_activation: class of the base function.
        grid_eps: see :func:`adapted_grid`.
        grid_range: ends of the grid, which is extended by k knots on both sides.
        bias: whether ``bias`` exists; it starts at 0.

    Attributes:
        base_weight: ``(out, in)``.
        spline_weight: ``(out, in, G + k)``.
        spline_scaler: ``(out, in)``.
        bias: ``(out,)``.
        grid: buffer of knots, ``(in, G + 2k + 1)``.
    """

    grid: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        enable_standalone_scale_spline: bool = True,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Sequence[float] = (-1.0, 1.0),
        bias: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.grid_size, self.spline_order = grid_size, spline_order
        self.scale_noise, self.scale_base, self.scale_spline = scale_noise, scale_base, scale_spline
        self.enable_standalone_scale_spline = enable_standalone_scale_spline
        self.base_activation = base_activation()
        self.grid_eps = grid_eps

        low, high = grid_range
        steps = torch.arange(-spline_order, grid_size + spline_order + 1)
        knots = low + steps * ((high - low) / grid_size)
        self.register_buffer("grid", knots.repeat(in_features, 1))
        edges, width = (out_features, in_features), grid_size + spline_order
        self.base_weight = nn.Parameter(torch.empty(edges))
        self.spline_weight = nn.Parameter(torch.empty(*edges, width))
        if enable_standalone_scale_spline:
            self.spline_scaler = nn.Parameter(torch.empty(edges))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw first values with torch's global generator."""
        nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5) * self.scale_base)
        knots = self.grid.T[self.spline_order : -self.spline_order or None]
        noise = torch.rand(*knots.shape, self.out_features, dtype=knots.dtype, device=knots.device)
        curves = (noise - 0.5) * (self.scale_noise / self.grid_size)
        scale = 1.0 if self.enable_standalone_scale_spline else self.scale_spline
        self.spline_weight.copy_(scale * self.curve2coeff(knots, curves))
        if self.enable_standalone_scale_spline:
            nn.init.kaiming_uniform_(self.spline_scaler, a=math.sqrt(5) * self.scale_spline)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def b_splines(self, x: Tensor) -> Tensor:
        """Basis functions at ``x`` of shape ``(N, in)``: ``(N, in, G + k)``."""
        return b_spline_basis(x, self.grid, self.spline_order).transpose(1, 2).contiguous()

    def curve2coeff(self, x: Tensor, y: Tensor) -> Tensor:
        """Spline weights ``(out, in, G + k)`` of curves ``y`` (N, in, out) over ``x`` (N, in)."""
        return fit_coefficients(x, y, self.grid, self.spline_order)

    @property
    def scaled_spline_weight(self) -> Tensor:
        """What the basis functions are multiplied with, ``(out, in, G + k)``."""
        if self.enable_standalone_scale_spline:
            return self.spline_weight * self.spline_scaler.unsqueeze(-1)
        return self.spline_weight

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in)`` to ``(*, out)``."""
        rows = x.reshape(-1, self.in_features)
        basis = b_spline_basis(rows, self.grid, self.spline_order)
        weight = self.scaled_spline_weight.transpose(1, 2).flatten(1)
        base = F.linear(self.base_activation(rows), self.base_weight, self.bias)
        y = base + F.linear(basis.flatten(1), weight)
        return y.reshape(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        """Move the knots to where the samples ``x`` (N, in) are and refit the curves there.

        The unscaled curves are refitted: both they and the refit are scaled by the same factor.
        """
        curves = torch.einsum("nik,oik->nio", self.b_splines(x), self.spline_weight)
        grid = adapted_grid(x, self.grid_size, self.spline_order, self.grid_eps, margin)
        # Weights first: a converted layer refuses, and must not be left with a new grid.
        self.spline_weight.copy_(fit_coefficients(x, curves, grid, self.spline_order))
        self.grid.copy_(grid)

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """Mean absolute coefficient of each edge: their sum, and the entropy of their shares."""
        size = self.spline_weight.abs().mean(-1)
        total = size.sum()
        entropy: Tensor = torch.special.entr(size / total).sum()
        return regularize_activation * total + regularize_entropy * entropy


class KAN(nn.Module):
    """Layers of :class:`KANLinear` one after the other.

    Args:
        layers_hidden: widths, inputs first and outputs last.
        grid_size, spline_order, scale_noise, scale_base, scale_spline, base_activation, grid_eps,
            grid_range, enable_standalone_scale_spline, bias: see :class:`KANLinear`.
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Sequence[float] = (-1.0, 1.0),
        enable_standalone_scale_spline: bool = True,
        bias: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        self.grid_size, self.spline_order = grid_size, spline_order
        self.layers = nn.ModuleList(
            KANLinear(
                width,
                following,
                grid_size=grid_size,
                spline_order=spline_order,
                scale_noise=scale_noise,
                scale_base=scale_base,
                scale_spline=scale_spline,
                enable_standalone_scale_spline=enable_standalone_scale_spline,
                base_activation=base_activation,
                grid_eps=grid_eps,
                grid_range=grid_range,
                bias=bias,
            )
            for width, following in itertools.pairwise(layers_hidden)
        )

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        """``(*, widths[0])`` to ``(*, widths[-1])``; ``update_grid`` needs x of shape (N, in)."""
        for layer in self.layers:
            if update_grid:
                layer.update_grid(x)  # type: ignore[operator]
            x = layer(x)
        return x

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """Sum over the layers."""
        losses = [
            layer.regularization_loss(regularize_activation, regularize_entropy)  # type: ignore[operator]
            for layer in self.layers
        ]
        return torch.stack(losses).sum()
