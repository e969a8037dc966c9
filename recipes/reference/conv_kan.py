"""B-spline convolutions with the names and layouts of torch-conv-kan's ``KANConv{1,2,3}DLayer``.

y = PReLU(norm(base_conv(b(x)) + spline_conv(B(x)))), for each group of channels

B(x) has G + k channels for each channel of x: the values of its B-splines. In the weight of
``spline_conv``, (out, in * (G + k), *kernel), those of a channel are adjacent.
Difference from the library: the grid is cast to the dtype of x, so that half precision works.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from recipes.reference.b_spline import b_spline_basis
from recipes.reference.conv_groups import GroupedConv
from recipes.reference.fc_spline import uniform_knots

__all__ = ["KANConv1DLayer", "KANConv2DLayer", "KANConv3DLayer", "KANConvNDLayer"]


class KANConvNDLayer(GroupedConv):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim, kernel_size, groups, padding, stride, dilation: see
            :class:`GroupedConv`.
        spline_order: degree k.
        grid_size: intervals G between the ends of ``grid_range``.
        base_activation: class of the base function b.
        grid_range: ends of the grid, which is extended by k knots on both sides.
        dropout: share of output channels dropped.
        norm_layer, norm_kwargs: class of the norm and its arguments; default: InstanceNorm.

    Attributes:
        grid: knots, ``(G + 2k + 1,)``; a plain tensor as in the library, so ``.to()`` leaves it.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int | tuple[int, ...],
        spline_order: int = 3,
        groups: int = 1,
        padding: int | tuple[int, ...] = 0,
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        grid_size: int = 5,
        base_activation: Callable[[], nn.Module] = nn.GELU,
        grid_range: Sequence[float] = (-1.0, 1.0),
        dropout: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        **norm_kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(
            input_dim, output_dim, kernel_size, groups, padding, stride, dilation, dropout
        )
        self.spline_order, self.grid_size = spline_order, grid_size
        self.base_activation = base_activation()
        self.base_conv = self.convolutions(self.group_in, self.group_out)
        self.spline_conv = self.convolutions(
            self.group_in * (grid_size + spline_order), self.group_out
        )
        self.layer_norm = self.norms(self.group_out, norm_layer, **norm_kwargs)
        self.prelus = nn.ModuleList(nn.PReLU() for _ in range(groups))
        self.grid = uniform_knots(grid_range[0], grid_range[1], grid_size, spline_order)

    def basis(self, x: Tensor) -> Tensor:
        """B-splines of each channel: ``(N, in, *space)`` to ``(N, in * (G + k), *space)``."""
        # Pixels in the place of inputs, all with the same grid: then nothing has to be transposed.
        rows = x.flatten(2).flatten(0, 1)
        knots = self.grid.to(x).expand(rows.shape[1], -1)
        basis = b_spline_basis(rows, knots, self.spline_order)
        channels = x.shape[1] * (self.grid_size + self.spline_order)
        return basis.reshape(x.shape[0], channels, *x.shape[2:])

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        y = self.base_conv[group](self.base_activation(x)) + self.spline_conv[group](self.basis(x))
        out: Tensor = self.dropout(self.prelus[group](self.layer_norm[group](y)))
        return out


class KANConv1DLayer(KANConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class KANConv2DLayer(KANConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class KANConv3DLayer(KANConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3
