"""Chebyshev convolutions with the names and layouts of torch-conv-kan's ``KACNConv{1,2,3}DLayer``.

y = norm(poly_conv(T(tanh x))), for each group of channels; there is no base branch.

T(t) has degree + 1 channels for each channel of t, T_0(t) to T_degree(t). In the weight of
``poly_conv``, (out, in * (degree + 1), *kernel), those of a *channel* are adjacent, unlike those of
the other polynomials in :mod:`recipes.reference.conv_poly`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from recipes.reference.conv_groups import GroupedConv
from recipes.reference.polynomials import chebyshev

__all__ = ["KACNConv1DLayer", "KACNConv2DLayer", "KACNConv3DLayer", "KACNConvNDLayer"]


class KACNConvNDLayer(GroupedConv):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim, kernel_size, groups, padding, stride, dilation: see
            :class:`GroupedConv`.
        degree: an edge has degree + 1 coefficients at each kernel position.
        dropout: share of output channels dropped.
        norm_layer, norm_kwargs: class of the norm and its arguments; default: InstanceNorm.

    Attributes:
        epsilon: tanh x is held so far from -1 and 1.
        arange: buffer, the degrees.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int,
        degree: int = 3,
        groups: int = 1,
        padding: int = 0,
        stride: int = 1,
        dilation: int = 1,
        dropout: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        **norm_kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(
            input_dim, output_dim, kernel_size, groups, padding, stride, dilation, dropout
        )
        self.degree, self.epsilon = degree, 1e-7
        self.layer_norm = self.norms(self.group_out, norm_layer, **norm_kwargs)
        self.poly_conv = self.convolutions(self.group_in * (degree + 1), self.group_out)
        for weight in self.poly_conv.parameters():
            nn.init.normal_(weight, std=1 / (weight[0].numel() * groups))
        self.register_buffer("arange", torch.arange(degree + 1).view(1, 1, -1, *[1] * self.ndim))

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        t = torch.tanh(x).clamp(self.epsilon - 1, 1 - self.epsilon)
        basis = chebyshev(t, self.degree).movedim(-1, 2).flatten(1, 2)
        y: Tensor = self.dropout(self.layer_norm[group](self.poly_conv[group](basis)))
        return y


class KACNConv1DLayer(KACNConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class KACNConv2DLayer(KACNConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class KACNConv3DLayer(KACNConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3
