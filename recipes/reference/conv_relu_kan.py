"""ReLU-KAN convolutions with the names and layouts of torch-conv-kan (ReLU-KAN, arXiv 2406.02075).

ReLUKANConv:           y = silu(norm(base_conv(silu(x)) + relukan_conv(R(x))))
BottleNeckReLUKANConv: y = silu(norm(base_conv(silu(x)) + out_proj(relukan_conv(R(inner_proj(x))))))

for each group of channels. R(x) has g + k channels for each channel of x, the bumps of
:mod:`recipes.reference.relu_kan`; in the weight of ``relukan_conv``, (out, in * (g + k), *kernel),
those of a channel are adjacent. All groups share the phases, the ends of the bumps.
Difference from the library: the phases are contiguous, so that optimisers can step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from recipes.reference.conv_groups import GroupedConv, bottleneck_channels
from recipes.reference.relu_kan import relu_bumps

__all__ = [
    "BottleNeckReLUConvNDLayer",
    "BottleNeckReLUKANConv1DLayer",
    "BottleNeckReLUKANConv2DLayer",
    "BottleNeckReLUKANConv3DLayer",
    "ReLUConvNDLayer",
    "ReLUKANConv1DLayer",
    "ReLUKANConv2DLayer",
    "ReLUKANConv3DLayer",
]


class _BumpConv(GroupedConv):
    """What both kinds share."""

    g: int
    k: int
    layer_norm: nn.ModuleList

    def add_branches(self, inner_in: int, inner_out: int, train_ab: bool) -> None:
        """Make the base branch, and that of the bumps between so many channels."""
        self.r = (2 * self.g / (self.k + 1)) ** 2
        low = (torch.arange(-self.k, self.g) / self.g).repeat(inner_in, 1)
        low = low.view(1, inner_in, self.g + self.k, *[1] * self.ndim)
        self.phase_low = nn.Parameter(low, requires_grad=train_ab)
        self.phase_high = nn.Parameter(low + (self.k + 1) / self.g, requires_grad=train_ab)
        self.base_activation = nn.SiLU()
        self.base_conv = self.convolutions(self.group_in, self.group_out)
        self.relukan_conv = self.convolutions(inner_in * (self.g + self.k), inner_out)

    def bump_branch(self, x: Tensor, group: int) -> Tensor:
        """``relukan_conv`` of the bumps of each channel."""
        bumps = relu_bumps(x.unsqueeze(2), self.phase_low, self.phase_high, self.r)
        y: Tensor = self.relukan_conv[group](bumps.flatten(1, 2))
        return y

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        x = self.dropout(x)
        y = self.base_conv[group](self.base_activation(x)) + self.bump_branch(x, group)
        out: Tensor = self.base_activation(self.layer_norm[group](y))
        return out


class ReLUConvNDLayer(_BumpConv):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim, kernel_size, groups, padding, stride, dilation: see
            :class:`GroupedConv`.
        g: bumps start every 1 / g.
        k: bumps overlap k others on each side. An edge has g + k coefficients.
        train_ab: whether the phases are trained.
        dropout: share of input channels dropped.
        norm_layer, norm_kwargs: class of the norm and its arguments; default: InstanceNorm.

    Attributes:
        phase_low, phase_high: ``(1, in / groups, g + k, 1, ...)``.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int | tuple[int, ...],
        g: int = 5,
        k: int = 3,
        train_ab: bool = True,
        groups: int = 1,
        padding: int | tuple[int, ...] = 0,
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        dropout: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        **norm_kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(
            input_dim, output_dim, kernel_size, groups, padding, stride, dilation, dropout
        )
        self.g, self.k = g, k
        self.add_branches(self.group_in, self.group_out, train_ab)
        self.layer_norm = self.norms(self.group_out, norm_layer, **norm_kwargs)


class BottleNeckReLUConvNDLayer(_BumpConv):
    """As :class:`ReLUConvNDLayer`, with the bumps between n inner channels.

    Args:
        dim_reduction, min_internal: see :func:`bottleneck_channels`, which gives n.

    Attributes:
        phase_low, phase_high: ``(1, n, g + k, 1, ...)``.
        inner_proj, out_proj: convolutions with kernels of size 1 to and from the inner channels.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int | tuple[int, ...],
        g: int = 5,
        k: int = 3,
        train_ab: bool = True,
        groups: int = 1,
        padding: int | tuple[int, ...] = 0,
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        dropout: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        dim_reduction: float = 4,
        min_internal: int = 16,
        **norm_kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(
            input_dim, output_dim, kernel_size, groups, padding, stride, dilation, dropout
        )
        self.g, self.k = g, k
        n = bottleneck_channels(self.group_in, self.group_out, dim_reduction, min_internal)
        self.inner_dim = n
        self.add_branches(n, n, train_ab)
        self.inner_proj = self.convolutions(self.group_in, n, kernel_size=1)
        self.out_proj = self.convolutions(n, self.group_out, kernel_size=1)
        self.layer_norm = self.norms(self.group_out, norm_layer, **norm_kwargs)

    def bump_branch(self, x: Tensor, group: int) -> Tensor:
        """``relukan_conv`` of the bumps of each inner channel, projected to the outputs."""
        y: Tensor = self.out_proj[group](super().bump_branch(self.inner_proj[group](x), group))
        return y


class ReLUKANConv1DLayer(ReLUConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class ReLUKANConv2DLayer(ReLUConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class ReLUKANConv3DLayer(ReLUConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3


class BottleNeckReLUKANConv1DLayer(BottleNeckReLUConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class BottleNeckReLUKANConv2DLayer(BottleNeckReLUConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class BottleNeckReLUKANConv3DLayer(BottleNeckReLUConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3
