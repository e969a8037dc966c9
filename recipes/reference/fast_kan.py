"""Gaussian RBF KAN layers with the names and layouts of fast-kan (FastKAN, arXiv 2405.06721).

y = spline_linear(rbf(layernorm(x))) + base_linear(silu(x))
rbf_k(x) = exp(-((x - grid_k) / denominator)^2)

The weight of ``spline_linear`` is ``(out, in * K)``: the K coefficients of an input are adjacent.
Difference from the library: ``base_bias=False`` leaves out the bias of ``base_linear``, as the
counts of the paper's MetaFastKAN do.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FastKAN", "FastKANLayer", "RadialBasisFunction", "SplineLinear"]


class SplineLinear(nn.Linear):
    """A linear layer without bias that starts as truncated normal noise of ``init_scale``."""

    def __init__(
        self, in_features: int, out_features: int, init_scale: float = 0.1, **kwargs: Any
    ) -> None:
        """See the class; ``kwargs`` are device and dtype."""
        self.init_scale = init_scale
        super().__init__(in_features, out_features, bias=False, **kwargs)

    def reset_parameters(self) -> None:
        """Draw first values with torch's global generator."""
        nn.init.trunc_normal_(self.weight, std=self.init_scale)


class RadialBasisFunction(nn.Module):
    """K Gaussians with evenly spaced centres.

    Args:
        grid_min, grid_max: first and last centre.
        num_grids: number K of centres.
        denominator: width of the Gaussians; default: the distance of the centres.

    Attributes:
        grid: the centres, ``(K,)``, a Parameter that is not trained.
    """

    def __init__(
        self,
        grid_min: float = -2.0,
        grid_max: float = 2.0,
        num_grids: int = 8,
        denominator: float | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.grid_min, self.grid_max, self.num_grids = grid_min, grid_max, num_grids
        centres = torch.linspace(grid_min, grid_max, num_grids)
        self.grid = nn.Parameter(centres, requires_grad=False)
        self.denominator = denominator or (grid_max - grid_min) / (num_grids - 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(*)`` to ``(*, K)``."""
        # Dividing x and the centres first leaves one operation fewer on the K times larger tensor.
        distance = (x / self.denominator).unsqueeze(-1) - self.grid / self.denominator
        return torch.exp(-distance.square())


class FastKANLayer(nn.Module):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim: number of inputs and outputs.
        grid_min, grid_max, num_grids: see :class:`RadialBasisFunction`.
        use_base_update: whether there is a base branch.
        use_layernorm: whether inputs of the Gaussians are normalised; not possible for one input.
        base_activation: function of the base branch.
        spline_weight_init_scale: see :class:`SplineLinear`.
        base_bias: whether ``base_linear`` has a bias.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        grid_min: float = -2.0,
        grid_max: float = 2.0,
        num_grids: int = 8,
        use_base_update: bool = True,
        use_layernorm: bool = True,
        base_activation: Callable[[Tensor], Tensor] = F.silu,
        spline_weight_init_scale: float = 0.1,
        base_bias: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        if use_layernorm and input_dim == 1:
            raise ValueError(
                "use_layernorm=True with input_dim=1: the norm of a single number is always 0. "
                "Pass use_layernorm=False."
            )
        self.input_dim, self.output_dim = input_dim, output_dim
        self.layernorm = nn.LayerNorm(input_dim) if use_layernorm else None
        self.rbf = RadialBasisFunction(grid_min, grid_max, num_grids)
        self.spline_linear = SplineLinear(
            input_dim * num_grids, output_dim, spline_weight_init_scale
        )
        self.use_base_update = use_base_update
        if use_base_update:
            self.base_activation = base_activation
            self.base_linear = nn.Linear(input_dim, output_dim, bias=base_bias)

    def forward(self, x: Tensor, use_layernorm: bool = True) -> Tensor:
        """``(*, in)`` to ``(*, out)``; ``use_layernorm=False`` skips the norm for this call."""
        normed = x if self.layernorm is None or not use_layernorm else self.layernorm(x)
        y: Tensor = self.spline_linear(self.rbf(normed).flatten(-2))
        return y + self.base_linear(self.base_activation(x)) if self.use_base_update else y


class FastKAN(nn.Module):
    """Layers of :class:`FastKANLayer` one after the other.

    Args:
        layers_hidden: widths, inputs first and outputs last.
        grid_min, grid_max, num_grids, use_base_update, base_activation, spline_weight_init_scale,
            base_bias: see :class:`FastKANLayer`.
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        grid_min: float = -2.0,
        grid_max: float = 2.0,
        num_grids: int = 8,
        use_base_update: bool = True,
        base_activation: Callable[[Tensor], Tensor] = F.silu,
        spline_weight_init_scale: float = 0.1,
        base_bias: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        self.layers = nn.ModuleList(
            FastKANLayer(
                width,
                following,
                grid_min=grid_min,
                grid_max=grid_max,
                num_grids=num_grids,
                use_base_update=use_base_update,
                base_activation=base_activation,
                spline_weight_init_scale=spline_weight_init_scale,
                base_bias=base_bias,
            )
            for width, following in itertools.pairwise(layers_hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(*, widths[0])`` to ``(*, widths[-1])``."""
        for layer in self.layers:
            x = layer(x)
        return x
