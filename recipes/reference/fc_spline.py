"""B-spline KAN layer with the names and layouts of torch-conv-kan's ``kans.layers``.

y = PReLU(LayerNorm(s)), s_o = sum_i (base_weight[o,i] b(x_i) + sum_k spline_weight[o,i,k] B_k(x_i))

B_k are the B-splines of degree ``spline_order`` on one grid for all inputs. The RBF layer of the
same library, ``FastKANLayer``, is fast-kan's: see :mod:`recipes.reference.fast_kan`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KANLayer", "uniform_knots"]


def uniform_knots(low: float, high: float, size: int, order: int) -> Tensor:
    """``size`` intervals from ``low`` to ``high`` and ``order`` more on each side: their ends."""
    beyond = order * (high - low) / size
    return torch.linspace(low - beyond, high + beyond, size + 2 * order + 1)


class KANLayer(nn.Module):
    """One layer; see the module's docstring for the formula.

    Args:
        input_features, output_features: number of inputs and outputs.
        grid_size: intervals G between the ends of ``grid_range``.
        spline_order: degree k. An edge has G + k spline coefficients.
        base_activation: class of the base function b.
        grid_range: ends of the grid, which is extended by k knots on both sides.

    Attributes:
        base_weight: ``(out, in)``.
        spline_weight: ``(out, in, G + k)``.
        grid: knots, ``(in, G + 2k + 1)``; a plain tensor as in the library, so ``.to()`` leaves it.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        base_activation: Callable[[], nn.Module] = nn.GELU,
        grid_range: Sequence[float] = (-1.0, 1.0),
    ) -> None:
        """See the class."""
        super().__init__()
        self.input_features, self.output_features = input_features, output_features
        self.grid_size, self.spline_order = grid_size, spline_order
        self.base_activation = base_activation()
        edges = (output_features, input_features)
        self.base_weight = nn.Parameter(torch.empty(edges))
        self.spline_weight = nn.Parameter(torch.empty(*edges, grid_size + spline_order))
        self.layer_norm = nn.LayerNorm(output_features)
        self.prelu = nn.PReLU()
        low, high = grid_range
        self.grid = uniform_knots(low, high, grid_size, spline_order).repeat(input_features, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first values with torch's global generator."""
        nn.init.kaiming_uniform_(self.base_weight, nonlinearity="linear")
        nn.init.kaiming_uniform_(self.spline_weight, nonlinearity="linear")

    def basis(self, x: Tensor) -> Tensor:
        """B-splines by Cox and de Boor's recursion: ``(N, in)`` to ``(N, G + k, in)``.

        The grid keeps its dtype when the layer is cast, and differences of knots are taken in it.
        """
        knots, x = self.grid.to(x.device).T.contiguous(), x.unsqueeze(1)
        values = ((x >= knots[:-1]) & (x < knots[1:])).to(x)
        for k in range(1, self.spline_order + 1):
            rising = (x - knots[: -k - 1]) / (knots[k:-1] - knots[: -k - 1])
            falling = (knots[k + 1 :] - x) / (knots[k + 1 :] - knots[1:-k])
            values = rising * values[:, :-1] + falling * values[:, 1:]
        return values

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in)`` to ``(*, out)``."""
        rows = x.reshape(-1, self.input_features)
        basis = self.basis(rows)
        weight = self.spline_weight.transpose(1, 2).flatten(1)  # the basis has inputs last
        s = F.linear(self.base_activation(rows), self.base_weight) + F.linear(
            basis.flatten(1), weight
        )
        y: Tensor = self.prelu(self.layer_norm(s))
        return y.reshape(*x.shape[:-1], self.output_features)
