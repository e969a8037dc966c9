"""The best linear code of coefficients: PCA, in any metric. Pure functions on tensors.

w_e = mean + D z_e with ``dim_z`` numbers z_e an edge. Every layer of a cluster has a mean of its
own, which costs nothing (it is the layer's constant ``offset``) and can only lower the error. In
the metric G the error of an edge is d G d for d = w - w_e; with the Gram matrix of a layer's basis
as G that is the error of the function, not of the coefficients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearCode", "blocks", "linear_code", "pca_floor", "squared_error"]

_BLOCK = 1 << 16  # edges at once: bounds the memory beside the coefficients themselves


def blocks(number: int) -> Iterator[slice]:
    """Cut ``number`` edges into slices of bounded length."""
    return (slice(start, start + _BLOCK) for start in range(0, number, _BLOCK))


@dataclass(frozen=True)
class LinearCode:
    """Axes of a cluster.

    Attributes:
        means: of each layer, ``(dim_w,)``.
        root: R with G = R R^T, ``(dim_w, dim_w)``: x = (w - mean) R has the metric's length.
        inverse: of ``root``.
        axes: orthonormal columns in the coordinates x, largest variance first,
            ``(dim_w, min(dim_z, dim_w))``.
        spread: standard deviation of x along the first axis.
    """

    means: tuple[Tensor, ...]
    root: Tensor
    inverse: Tensor
    axes: Tensor
    spread: float

    def targets(self, w: Tensor, layer: int) -> Tensor:
        """Coordinates x, in units of ``spread``, of coefficients ``(E, dim_w)`` of one layer."""
        return ((w.to(self.root) - self.means[layer]) @ self.root) / self.spread


def linear_code(
    coefficients: Sequence[Tensor], dim_z: int, metric: Tensor | None = None
) -> LinearCode:
    """Find the code with the smallest total squared error.

    Args:
        coefficients: of each layer, ``(E, dim_w)``.
        dim_z: numbers of an edge.
        metric: G, symmetric, ``(dim_w, dim_w)``; default: the identity.
    """
    means, scatters = zip(*map(_moments, coefficients), strict=True)
    like = means[0]
    root = inverse = torch.eye(len(like), dtype=like.dtype, device=like.device)
    if metric is not None:
        root, inverse = _roots(metric.to(like))
    _, vectors = torch.linalg.eigh(root.T @ sum(scatters) @ root)  # ascending
    axes = vectors.flip(-1)[:, :dim_z]
    edges = sum(len(w) for w in coefficients)
    variance = float(axes[:, 0] @ root.T @ sum(scatters) @ root @ axes[:, 0]) / edges
    return LinearCode(tuple(means), root, inverse, axes, _power_of_two(variance**0.5))


def pca_floor(coefficients: Sequence[Tensor], dim_z: int) -> list[float]:
    """Squared error of each layer under plain PCA of the whole cluster, which has one mean."""
    means, scatters = zip(*map(_moments, coefficients), strict=True)
    numbers = [len(w) for w in coefficients]
    mean = sum(m * n for m, n in zip(means, numbers, strict=True)) / sum(numbers)
    about = [
        s + n * torch.outer(m - mean, m - mean)
        for s, m, n in zip(scatters, means, numbers, strict=True)
    ]
    rest = torch.linalg.eigh(sum(about))[1].flip(-1)[:, dim_z:]
    return [max(float((rest * (s @ rest)).sum()), 0.0) for s in about]


def squared_error(first: Tensor, second: Tensor) -> float:
    """Sum of squared differences, in double precision."""
    return sum(
        float((first[rows].double() - second[rows].double()).square().sum())
        for rows in blocks(len(first))
    )


def _moments(w: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scatter about it of ``(E, dim_w)``, in double precision, in two passes."""
    none = w.new_zeros(w.shape[1], dtype=torch.float64)
    mean = sum((w[rows].double().sum(0) for rows in blocks(len(w))), none) / len(w)
    scatter = torch.diag(none)
    for rows in blocks(len(w)):
        centred = w[rows].double() - mean
        scatter += centred.T @ centred
    return mean, scatter


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """R with R R^T = metric, and its inverse. Directions without weight get a little.

    A basis function that no input reaches has no weight at all; its coefficient is then free.
    """
    values, vectors = torch.linalg.eigh(metric)
    least = float(values[-1]) * 1e-6
    values = values.clamp(min=least if least > 0 else 1.0).sqrt()
    return vectors * values, (vectors / values).T


def _power_of_two(x: float) -> float:
    """Nearest power of two, so that dividing by it rounds nothing; 1 for 0."""
    return float(2.0 ** torch.tensor(x).log2().round()) if x > 1e-30 else 1.0
