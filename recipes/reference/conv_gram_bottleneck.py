"""Gram polynomials on few channels, with the names and layouts of torch-conv-kan.

BottleNeckKAGNConv: y = silu(norm(base_conv(silu(x)) + out_proj(KAGNExpert(inner_proj(x)))))
KAGNExpert:         y = conv(G(x), poly_weights), in the library one expert of a mixture

for each group of channels; see :mod:`recipes.reference.conv_gram` for G. The polynomials of the
bottleneck have other edges, n x n of them, than its base branch with out x in.
Difference from the library: no noise is added in training, its ``dropout``.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from recipes.reference.conv_gram import GramBasis
from recipes.reference.conv_groups import bottleneck_channels
from recipes.reference.conv_poly import Expansion

__all__ = [
    "BottleNeckKAGNConv1DLayer",
    "BottleNeckKAGNConv2DLayer",
    "BottleNeckKAGNConv3DLayer",
    "BottleNeckKAGNConvNDLayer",
    "KAGNExpert",
]


class BottleNeckKAGNConvNDLayer(GramBasis, Expansion):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim, kernel_size, degree, groups, padding, stride, dilation, norm_layer,
            norm_kwargs: see :class:`PolyConv`.
        dim_reduction, min_internal: see :func:`bottleneck_channels`, which gives n.

    Attributes:
        poly_weights: ``(groups, n, (degree + 1) * n, *kernel)``.
        inner_proj, out_proj: convolutions with kernels of size 1 to and from the inner channels.
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
        norm_layer: type[nn.Module] | None = None,
        dim_reduction: float = 4,
        min_internal: int = 16,
        **norm_kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(input_dim, output_dim, kernel_size, groups, padding, stride, dilation)
        n = bottleneck_channels(self.group_in, self.group_out, dim_reduction, min_internal)
        self.inner_dim = n
        self.base_conv = self.convolutions(self.group_in, self.group_out)
        self.inner_proj = self.convolutions(self.group_in, n, kernel_size=1)
        self.out_proj = self.convolutions(n, self.group_out, kernel_size=1)
        self.layer_norm = self.norms(self.group_out, norm_layer, **norm_kwargs)
        self.add_polynomials(n, n, degree)
        self.add_recurrence(degree)

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        inner = self.expand(self.basis(self.inner_proj[group](x)), group)
        y = self.base_conv[group](F.silu(x)) + self.out_proj[group](inner)
        return F.silu(self.layer_norm[group](y))


class KAGNExpert(GramBasis, Expansion):
    """Polynomials alone; see the module's docstring for the formula.

    Args:
        conv_w_fun: torch's convolution for ``ndim`` spatial axes; not used, as ``ndim`` tells it.
        input_dim, output_dim, degree, kernel_size, groups, padding, stride, dilation: see
            :class:`PolyConv`.
        ndim: number of spatial axes.
    """

    def __init__(
        self,
        conv_w_fun: Callable[..., Tensor],
        input_dim: int,
        output_dim: int,
        degree: int,
        kernel_size: int,
        groups: int = 1,
        padding: int = 0,
        stride: int = 1,
        dilation: int = 1,
        ndim: int = 2,
    ) -> None:
        """See the class; the order of arguments is the library's."""
        self.ndim = ndim  # type: ignore[misc]  # of this layer: one class serves 1 to 3 axes
        super().__init__(input_dim, output_dim, kernel_size, groups, padding, stride, dilation)
        self.add_polynomials(self.group_in, self.group_out, degree)
        self.add_recurrence(degree)

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        return self.expand(self.basis(x), group)


class BottleNeckKAGNConv1DLayer(BottleNeckKAGNConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class BottleNeckKAGNConv2DLayer(BottleNeckKAGNConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class BottleNeckKAGNConv3DLayer(BottleNeckKAGNConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3
