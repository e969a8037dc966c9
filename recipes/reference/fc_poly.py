"""Polynomial KAN layers with the names and layouts of torch-conv-kan's ``kans.layers``.

ChebyKANLayer        y = s                         s_o = sum_ik c[i,o,k] T_k(tanh x_i)
KALNLayer            y = act(LayerNorm(s + base))  s_o = sum_ik w[o,(i k)] P_k(x_i as [-1, 1])
JacobiKANLayer       y = act(LayerNorm(s + base))  s_o = sum_ik c[i,o,k] P_k^(a,b)(tanh x_i)
GRAMLayer            y = act(LayerNorm(s + base))  s_o = sum_ik c[i,o,k] act(G_k(tanh x_i))
BottleNeckGRAMLayer  y = act(LayerNorm(s + base))  s = outer_proj(that sum for inner_proj(x))

base_o = sum_i base_weight[o,i] act(x_i). T, P, P^(a,b): Chebyshev, Legendre and Jacobi polynomials;
G: Gram polynomials whose recurrence is learnt. ``BernsteinKANLayer`` is missing on purpose: the
library's does not compute Bernstein polynomials and cannot be trained.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.reference.polynomials import chebyshev, gram, jacobi, legendre

__all__ = ["BottleNeckGRAMLayer", "ChebyKANLayer", "GRAMLayer", "JacobiKANLayer", "KALNLayer"]


class ChebyKANLayer(nn.Module):
    """Chebyshev polynomials without a base branch.

    Args:
        input_dim, output_dim: number of inputs and outputs.
        degree: an edge has degree + 1 coefficients.

    Attributes:
        cheby_coeffs: ``(in, out, degree + 1)``.
        arange: buffer, the degrees.
    """

    def __init__(self, input_dim: int, output_dim: int, degree: int) -> None:
        """See the class."""
        super().__init__()
        self.inputdim, self.outdim, self.degree = input_dim, output_dim, degree
        self.cheby_coeffs = nn.Parameter(torch.empty(input_dim, output_dim, degree + 1))
        nn.init.normal_(self.cheby_coeffs, std=1 / (input_dim * (degree + 1)))
        self.register_buffer("arange", torch.arange(degree + 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in)`` to ``(*, out)``."""
        return _expand(chebyshev(torch.tanh(x), self.degree), self.cheby_coeffs)


class KALNLayer(nn.Module):
    """Legendre polynomials of inputs that are scaled to [-1, 1] over the *whole batch*.

    So samples depend on each other, in evaluation mode too, and a constant batch gives NaN.

    Args:
        input_features, output_features: number of inputs and outputs.
        degree: an edge has degree + 1 coefficients besides its base weight.
        base_activation: class of ``act``.

    Attributes:
        base_weight: ``(out, in)``.
        poly_weight: ``(out, in * (degree + 1))``.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        degree: int = 3,
        base_activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        """See the class."""
        super().__init__()
        self.input_features, self.output_features = input_features, output_features
        self.polynomial_order = degree
        self.base_activation = base_activation()
        self.base_weight = nn.Parameter(torch.empty(output_features, input_features))
        self.poly_weight = nn.Parameter(torch.empty(output_features, input_features * (degree + 1)))
        self.layer_norm = nn.LayerNorm(output_features)
        nn.init.kaiming_uniform_(self.base_weight, nonlinearity="linear")
        nn.init.kaiming_uniform_(self.poly_weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in)`` to ``(*, out)``."""
        low, high = x.min(), x.max()
        basis = legendre(2 * (x - low) / (high - low) - 1, self.polynomial_order)
        base = F.linear(self.base_activation(x), self.base_weight)
        s = base + F.linear(basis.flatten(-2), self.poly_weight)
        y: Tensor = self.base_activation(self.layer_norm(s))
        return y


class JacobiKANLayer(nn.Module):
    """Jacobi polynomials of weight (1 - x)^a (1 + x)^b.

    Args:
        input_dim, output_dim: number of inputs and outputs.
        degree: an edge has degree + 1 coefficients besides its base weight.
        a, b: see above.
        act: class of ``act``.

    Attributes:
        base_weights: ``(out, in)``.
        jacobi_coeffs: ``(in, out, degree + 1)``.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        degree: int,
        a: float = 1.0,
        b: float = 1.0,
        act: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        """See the class."""
        super().__init__()
        self.inputdim, self.outdim, self.degree = input_dim, output_dim, degree
        self.a, self.b = a, b
        self.act = act()
        self.norm = nn.LayerNorm(output_dim)
        self.base_weights = nn.Parameter(torch.empty(output_dim, input_dim))
        self.jacobi_coeffs = nn.Parameter(torch.empty(input_dim, output_dim, degree + 1))
        nn.init.normal_(self.jacobi_coeffs, std=1 / (input_dim * (degree + 1)))
        nn.init.xavier_uniform_(self.base_weights)

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in)`` to ``(*, out)``."""
        basis = jacobi(torch.tanh(x), self.degree, self.a, self.b)
        s = _expand(basis, self.jacobi_coeffs) + F.linear(self.act(x), self.base_weights)
        y: Tensor = self.act(self.norm(s))
        return y


class GRAMLayer(nn.Module):
    """Gram polynomials with a learnt recurrence, shared by all edges.

    Args:
        in_channels, out_channels: number of inputs and outputs.
        degree: an edge has degree + 1 coefficients besides its base weight.
        act: class of ``act``.

    Attributes:
        beta_weights: factors of the recurrence, ``(degree + 1,)``; first and last are not used.
        grams_basis_weights: ``(in, out, degree + 1)``.
        base_weights: ``(out, in)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        degree: int = 3,
        act: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        """See the class."""
        super().__init__()
        self.in_channels, self.out_channels, self.degrees = in_channels, out_channels, degree
        self.act = act()
        self.norm = nn.LayerNorm(out_channels)
        self.beta_weights = _beta_weights(in_channels, degree)
        self.grams_basis_weights = nn.Parameter(torch.empty(in_channels, out_channels, degree + 1))
        self.base_weights = nn.Parameter(torch.empty(out_channels, in_channels))
        nn.init.xavier_uniform_(self.grams_basis_weights)
        nn.init.xavier_uniform_(self.base_weights)

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in)`` to ``(*, out)``."""
        basis = self.act(gram(torch.tanh(x), self.degrees, self.beta_weights))
        s = _expand(basis, self.grams_basis_weights) + F.linear(self.act(x), self.base_weights)
        y: Tensor = self.act(self.norm(s))
        return y


class BottleNeckGRAMLayer(nn.Module):
    """Gram polynomials on n x n edges between two linear maps; the base branch has out x in edges.

    Args:
        in_channels, out_channels, degree, act: see :class:`GRAMLayer`.
        dim_reduction: n is the larger number of channels divided by this ...
        min_internal: ... but at least this where both numbers of channels are.

    Attributes:
        inner_proj, outer_proj: the linear maps, in to n and n to out.
        beta_weights: see :class:`GRAMLayer`.
        grams_basis_weights: ``(n, n, degree + 1)``.
        base_weights: ``(out, in)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        degree: int = 3,
        act: Callable[[], nn.Module] = nn.SiLU,
        dim_reduction: float = 8,
        min_internal: int = 16,
    ) -> None:
        """See the class."""
        super().__init__()
        self.in_channels, self.out_channels, self.degrees = in_channels, out_channels, degree
        inner = int(max(in_channels, out_channels) / dim_reduction)
        if inner < min_internal:
            inner = min(min_internal, in_channels, out_channels)
        self.inner_dim = inner
        self.act = act()
        self.inner_proj = nn.Linear(in_channels, inner)
        self.outer_proj = nn.Linear(inner, out_channels)
        self.norm = nn.LayerNorm(out_channels)
        self.beta_weights = _beta_weights(in_channels, degree)
        self.grams_basis_weights = nn.Parameter(torch.empty(inner, inner, degree + 1))
        self.base_weights = nn.Parameter(torch.empty(out_channels, in_channels))
        for weight in (
            self.grams_basis_weights,
            self.base_weights,
            self.inner_proj.weight,
            self.outer_proj.weight,
        ):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in)`` to ``(*, out)``."""
        basis = self.act(gram(torch.tanh(self.inner_proj(x)), self.degrees, self.beta_weights))
        inner = self.outer_proj(_expand(basis, self.grams_basis_weights))
        y: Tensor = self.act(self.norm(inner + F.linear(self.act(x), self.base_weights)))
        return y


def _beta_weights(inputs: int, degree: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(degree + 1) / (inputs * (degree + 1)))


def _expand(basis: Tensor, coefficients: Tensor) -> Tensor:
    """Sum over inputs and degrees: ``(*, in, K)`` and ``(in, out, K)`` to ``(*, out)``."""
    return torch.einsum("...ik,iok->...o", basis, coefficients)
