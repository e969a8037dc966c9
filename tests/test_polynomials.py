"""The polynomials of the reference layers equal numpy's, or have what defines them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev as np_chebyshev
from numpy.polynomial import legendre as np_legendre
from torch import Tensor

from recipes.reference import polynomials
from tests.test_reference import close

X = torch.linspace(-1, 1, 41, dtype=torch.float64)


def by_numpy(values: Callable[..., np.ndarray], x: Tensor, degree: int) -> Tensor:
    """Values of all degrees by numpy, along a new last axis."""
    return torch.stack(
        [torch.from_numpy(values(x.numpy(), np.eye(degree + 1)[k])) for k in range(degree + 1)], -1
    )


@pytest.mark.parametrize("degree", range(7))
def test_chebyshev_and_legendre_equal_numpy(degree: int) -> None:
    close(polynomials.chebyshev(X, degree), by_numpy(np_chebyshev.chebval, X, degree))
    close(polynomials.legendre(X, degree), by_numpy(np_legendre.legval, X, degree))


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 1), (2, 0), (0, 3), (2, 1)])
def test_jacobi_are_orthogonal_and_standardised(a: int, b: int) -> None:
    """With weight (1 - x)^a (1 + x)^b, and P_n(1) = (n + a over n)."""
    nodes, weights = (torch.from_numpy(v) for v in np_legendre.leggauss(12))
    p = polynomials.jacobi(nodes, 6, a, b)
    products = torch.einsum("x,xm,xn->mn", weights * (1 - nodes) ** a * (1 + nodes) ** b, p, p)
    close(products, torch.diag(products.diagonal()))
    ends = polynomials.jacobi(torch.ones(1, dtype=torch.float64), 6, a, b)[0]
    close(ends, torch.tensor([math.comb(n + a, n) for n in range(7)], dtype=torch.float64))


def monic_betas(degree: int) -> Tensor:
    """Betas for which Gram polynomials are Legendre's, scaled to a leading coefficient of 1."""
    n = torch.arange(degree + 1, dtype=torch.float64)
    c = (2 * n + 1) * n**2 * (4 * n**2 - 1) / (n + 1) ** 2
    return torch.nan_to_num(n**2 / (4 * n**2 - 1) / c)


def monic_legendre(x: Tensor, degree: int) -> Tensor:
    leading = [math.comb(2 * n, n) / 2**n for n in range(degree + 1)]
    return by_numpy(np_legendre.legval, x, degree) / torch.tensor(leading, dtype=torch.float64)


@pytest.mark.parametrize("degree", range(7))
def test_gram_are_legendre_for_the_right_betas(degree: int) -> None:
    close(polynomials.gram(X, degree, monic_betas(degree)), monic_legendre(X, degree))
    assert degree < 2 or not torch.allclose(
        polynomials.gram(X, degree, 2 * monic_betas(degree)), monic_legendre(X, degree)
    )
