"""B-spline KAN with the names and layouts of pykan's first releases (0.0.x), where edges are flat.

phi_e(x) = mask[e] (scale_base[e] silu(x_i) + scale_sp[e] sum_k coef[s(e),k] B_k(x_i)),  e = (o i)
y_o      = sum_i phi_oi(x_i) + biases[o]

s = ``weight_sharing`` names the edge whose spline an edge uses, its own unless they are locked
together. Every edge has a grid row of its own, without the k knots that are added on both sides
when it is evaluated. Only what a forward pass needs is here: no symbolic part, no grid updates.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.reference.b_spline import b_spline_basis

__all__ = ["KAN", "KANLayer"]


class KANLayer(nn.Module):
    """One layer; see the module's docstring for the formula.

    Args:
        in_dim, out_dim: number of inputs and outputs.
        num: intervals G of the grid.
        k: degree of the splines. An edge has G + k spline coefficients.
        noise_scale: the splines start as normal noise of this spread, divided by G.
        scale_base: first values, ``(out * in,)`` or one for all.
        base_fun: the base function.
        grid_range: ends of the grid.

    Attributes:
        coef: ``(out * in, G + k)``.
        scale_base, scale_sp: ``(out * in,)``.
        grid: ``(out * in, G + 1)``, not trained.
        mask: ``(out * in,)``, not trained.
        weight_sharing: ``(out * in,)``, a plain tensor as in the library.
    """

    def __init__(
        self,
        in_dim: int = 3,
        out_dim: int = 2,
        num: int = 5,
        k: int = 3,
        noise_scale: float = 0.1,
        scale_base: Tensor | float = 1.0,
        base_fun: Callable[[Tensor], Tensor] = F.silu,
        grid_range: Sequence[float] = (-1.0, 1.0),
    ) -> None:
        """See the class."""
        super().__init__()
        self.in_dim, self.out_dim, self.num, self.k = in_dim, out_dim, num, k
        self.size = size = in_dim * out_dim
        self.base_fun = base_fun
        low, high = grid_range
        self.grid = nn.Parameter(torch.linspace(low, high, num + 1).repeat(size, 1), False)
        self.coef = nn.Parameter(torch.randn(size, num + k) * (noise_scale / num))
        self.scale_base = nn.Parameter(torch.ones(size) * scale_base)
        self.scale_sp = nn.Parameter(torch.ones(size))
        self.mask = nn.Parameter(torch.ones(size), requires_grad=False)
        self.weight_sharing = torch.arange(size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(N, in)`` to ``(N, out)``, and for each edge ``(N, out, in)``: x, phi, its spline."""
        edges = x.repeat(1, self.out_dim)
        shared = self.weight_sharing
        basis = b_spline_basis(edges, _extended(self.grid[shared], self.k), self.k)
        spline = torch.einsum("nke,ek->ne", basis, self.coef[shared])
        phi = self.mask * (self.scale_base * self.base_fun(edges) + self.scale_sp * spline)
        shape = (len(x), self.out_dim, self.in_dim)
        phi = phi.reshape(shape)
        return phi.sum(2), edges.reshape(shape), phi, spline.reshape(shape)


class KAN(nn.Module):
    """Layers of :class:`KANLayer` with a bias after each.

    Args:
        width: widths, inputs first and outputs last.
        grid, k: see :class:`KANLayer` (``num``, ``k``).
        noise_scale_base: spread of the first ``scale_base`` around 1 / sqrt(in).
    """

    def __init__(
        self, width: Sequence[int], grid: int = 3, k: int = 3, noise_scale_base: float = 0.1
    ) -> None:
        """See the class."""
        super().__init__()
        self.act_fun = nn.ModuleList()
        self.biases = nn.ModuleList()
        for n_in, n_out in itertools.pairwise(width):
            scale_base = n_in**-0.5 + torch.randn(n_in * n_out) * noise_scale_base
            self.act_fun.append(KANLayer(n_in, n_out, grid, k, scale_base=scale_base))
            bias = nn.Linear(n_out, 1, bias=False)  # only a place for numbers, never applied
            nn.init.zeros_(bias.weight)
            self.biases.append(bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, widths[0])`` to ``(N, widths[-1])``."""
        for layer, bias in zip(self.act_fun, self.biases, strict=True):
            x = layer(x)[0] + bias.weight
        return x


def _extended(grid: Tensor, k: int) -> Tensor:
    """Grid with k more knots at both ends, as far apart as its own are on average."""
    step = (grid[:, -1:] - grid[:, :1]) / (grid.shape[1] - 1)
    more = torch.arange(1, k + 1, device=grid.device) * step
    return torch.cat([grid[:, :1] - more.flip(1), grid, grid[:, -1:] + more], dim=1)
