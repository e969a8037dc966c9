"""Gram polynomial convolutions with the names and layouts of torch-conv-kan.

y = silu(norm(base_conv(silu(x)) + conv(G(x), poly_weights))), for each group of channels

G(x) has degree + 1 channels for each channel of x, silu(G_k(tanh x)); those of a *degree* are
adjacent. G_k follow a recurrence that is learnt, and shared by all edges.
``KAGNConvNDLayerV2`` has plain convolutions. With groups its library cuts G(x) in consecutive
parts, which mixes channels and degrees of different groups, and so does this one.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.reference.conv_groups import CONVOLUTIONS, INSTANCE_NORMS, GroupedConv
from recipes.reference.conv_poly import PolyConv, degree_major
from recipes.reference.polynomials import gram

__all__ = [
    "GramBasis",
    "KAGNConv1DLayer",
    "KAGNConv1DLayerV2",
    "KAGNConv2DLayer",
    "KAGNConv2DLayerV2",
    "KAGNConv3DLayer",
    "KAGNConv3DLayerV2",
    "KAGNConvNDLayer",
    "KAGNConvNDLayerV2",
]


class GramBasis(GroupedConv):
    """A layer that computes G(x).

    Attributes:
        beta_weights: factors of the recurrence, ``(degree + 1,)``; first and last are not used.
    """

    degree: int

    def add_recurrence(self, degree: int) -> None:
        """Make ``beta_weights``."""
        self.degree = degree
        self.beta_weights = nn.Parameter(torch.empty(degree + 1))
        taps = self.geometry["kernel_size"] ** self.ndim
        nn.init.normal_(self.beta_weights, std=1 / (taps * self.inputdim * (degree + 1)))

    @lru_cache(maxsize=128)  # noqa: B019 - never a hit and keeps graphs alive, as in the library
    def gram_poly(self, x: Tensor, degree: int) -> Tensor:
        """``(N, channels, *space)`` to ``(N, (degree + 1) * channels, *space)``."""
        return degree_major(gram(x, degree, self.beta_weights))

    def basis(self, x: Tensor) -> Tensor:
        """G(x) of the module's docstring, in the shape of :meth:`gram_poly`."""
        return F.silu(self.gram_poly(self.dropout(torch.tanh(x)), self.degree))


class KAGNConvNDLayer(GramBasis, PolyConv):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim, kernel_size, degree, options: see :class:`PolyConv`; dropout is of
            tanh x.
    """

    def __init__(
        self, input_dim: int, output_dim: int, kernel_size: int, degree: int = 3, **options: Any
    ) -> None:
        """See the class."""
        super().__init__(input_dim, output_dim, kernel_size, degree, **options)
        self.add_recurrence(degree)

    def base(self, x: Tensor) -> Tensor:
        """Activation of the base branch."""
        return F.silu(x)


class KAGNConvNDLayerV2(GramBasis):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim, kernel_size, degree, groups, padding, stride, dilation, dropout,
            norm_layer, norm_kwargs: see :class:`PolyConv`.

    Attributes:
        poly_conv: its weight is ``(out, (degree + 1) * in / groups, *kernel)``.
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
        self.base_conv = self._convolution(input_dim)
        self.layer_norm = (norm_layer or INSTANCE_NORMS[self.ndim])(output_dim, **norm_kwargs)
        self.poly_conv = self._convolution(input_dim * (degree + 1))
        self.add_recurrence(degree)

    def _convolution(self, inputs: int) -> nn.Module:
        make = CONVOLUTIONS[self.ndim]
        conv = make(inputs, self.outdim, groups=self.groups, bias=False, **self.geometry)
        nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
        return conv

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, *space)`` to ``(N, out, *space)``."""
        y = self.base_conv(F.silu(x)) + self.poly_conv(self.basis(x))
        return F.silu(self.layer_norm(y))


class KAGNConv1DLayer(KAGNConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class KAGNConv2DLayer(KAGNConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class KAGNConv3DLayer(KAGNConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3


class KAGNConv1DLayerV2(KAGNConvNDLayerV2):
    """For ``(N, channels, length)``."""

    ndim = 1


class KAGNConv2DLayerV2(KAGNConvNDLayerV2):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class KAGNConv3DLayerV2(KAGNConvNDLayerV2):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3
