"""Polynomial convolutions with the names and layouts of torch-conv-kan.

y = silu(norm(base_conv(x) + conv(P(x), poly_weights))), for each group of channels

KALNConv: P_k Legendre, of x scaled to [-1, 1]
KAJNConv: P_k^(a,b) Jacobi, of tanh x

P(x) has degree + 1 channels for each channel of x. In ``poly_weights``, (groups, out / groups,
(degree + 1) * in / groups, *kernel), those of a *degree* are adjacent. ``KABNConv`` is missing on
purpose: the library's does not compute Bernstein polynomials and cannot be trained. The Gram family
is in :mod:`recipes.reference.conv_gram`, Chebyshev in :mod:`recipes.reference.conv_chebyshev`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.reference.conv_groups import GroupedConv
from recipes.reference.polynomials import jacobi, legendre

__all__ = [
    "Expansion",
    "KAJNConv1DLayer",
    "KAJNConv2DLayer",
    "KAJNConv3DLayer",
    "KAJNConvNDLayer",
    "KALNConv1DLayer",
    "KALNConv2DLayer",
    "KALNConv3DLayer",
    "KALNConvNDLayer",
    "PolyConv",
    "degree_major",
]

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def degree_major(basis: Tensor) -> Tensor:
    """``(N, channels, *space, K)`` to ``(N, K * channels, *space)``."""
    return basis.movedim(-1, 1).flatten(1, 2)


class Expansion(GroupedConv):
    """A layer with the coefficients of all groups in one Parameter.

    Attributes:
        poly_weights: ``(groups, outputs, (degree + 1) * inputs, *kernel)``.
    """

    degree: int

    def add_polynomials(self, inputs: int, outputs: int, degree: int) -> None:
        """Make ``poly_weights`` between so many channels of a group."""
        self.degree = degree
        kernel = [self.geometry["kernel_size"]] * self.ndim
        self.poly_weights = nn.Parameter(
            torch.empty(self.groups, outputs, inputs * (degree + 1), *kernel)
        )
        nn.init.kaiming_uniform_(self.poly_weights, nonlinearity="linear")

    def expand(self, basis: Tensor, group: int) -> Tensor:
        """Weighted sum: ``(N, (degree + 1) * inputs, *space)`` to ``(N, outputs, *space)``."""
        geometry = {name: self.geometry[name] for name in ("stride", "padding", "dilation")}
        return CONVOLVE[self.ndim](basis, self.poly_weights[group], **geometry)


class PolyConv(Expansion):
    """A layer by the formula in the module's docstring; a subclass computes the basis.

    Args:
        input_dim, output_dim, kernel_size, groups, padding, stride, dilation: see
            :class:`GroupedConv`; ``kernel_size`` is one number.
        degree: an edge has degree + 1 coefficients at each kernel position, and a base weight.
        dropout: share of channels that a subclass drops.
        norm_layer, norm_kwargs: class of the norm and its arguments; default: InstanceNorm.
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
        self.base_conv = self.convolutions(self.group_in, self.group_out)
        self.layer_norm = self.norms(self.group_out, norm_layer, **norm_kwargs)
        self.add_polynomials(self.group_in, self.group_out, degree)

    def base(self, x: Tensor) -> Tensor:
        """Activation of the base branch."""
        return x

    def basis(self, x: Tensor) -> Tensor:
        """``(N, channels, *space)`` to ``(N, (degree + 1) * channels, *space)``."""
        raise NotImplementedError

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        y = self.base_conv[group](self.base(x)) + self.expand(self.basis(x), group)
        return F.silu(self.layer_norm[group](y))


class KALNConvNDLayer(PolyConv):
    """Legendre polynomials of a group of channels that is scaled over the *whole batch*.

    So samples depend on each other, in evaluation mode too, and a constant input gives NaN.
    Arguments are those of :class:`PolyConv`; dropout is of scaled inputs.
    """

    def compute_legendre_polynomials(self, x: Tensor, order: int) -> Tensor:
        """``(N, channels, *space)`` to ``(N, (order + 1) * channels, *space)``."""
        return degree_major(legendre(x, order))

    def basis(self, x: Tensor) -> Tensor:
        """See :class:`PolyConv`."""
        low, high = x.min(), x.max()
        t = 2 * (x - low) / (high - low) - 1
        return self.compute_legendre_polynomials(self.dropout(t), self.degree)


class KAJNConvNDLayer(PolyConv):
    """Jacobi polynomials.

    Args:
        input_dim, output_dim, kernel_size, degree, options: see :class:`PolyConv`; dropout is of
            basis channels.
        a, b: the polynomials are orthogonal with weight (1 - x)^a (1 + x)^b.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int,
        degree: int = 3,
        *,
        a: float = 1.0,
        b: float = 1.0,
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(input_dim, output_dim, kernel_size, degree, **options)
        self.a, self.b = a, b
        terms = self.poly_weights[0, 0].numel() * self.groups
        nn.init.normal_(self.poly_weights, std=1 / terms)

    def compute_jacobi_polynomials(self, x: Tensor, order: int) -> Tensor:
        """``(N, channels, *space)`` to ``(N, (order + 1) * channels, *space)``."""
        return degree_major(jacobi(x, order, self.a, self.b))

    def basis(self, x: Tensor) -> Tensor:
        """See :class:`PolyConv`."""
        y: Tensor = self.dropout(self.compute_jacobi_polynomials(torch.tanh(x), self.degree))
        return y


class KALNConv1DLayer(KALNConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class KALNConv2DLayer(KALNConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class KALNConv3DLayer(KALNConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3


class KAJNConv1DLayer(KAJNConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class KAJNConv2DLayer(KAJNConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class KAJNConv3DLayer(KAJNConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3
