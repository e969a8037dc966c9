"""B-splines: basis, least-squares fit, and knots that follow samples. Pure functions on tensors.

A KAN layer has a grid of knots of its own for each input: ``(in, T)``, T = G + 2k + 1 for G
intervals and splines of degree k (KAN, arXiv 2404.19756, Sec. 2.4).
"""

import torch
from torch import Tensor

__all__ = ["adapted_grid", "b_spline_basis", "fit_coefficients"]


def b_spline_basis(x: Tensor, grid: Tensor, order: int) -> Tensor:
    """All B-splines of degree ``order`` at ``x`` by the Cox-de Boor recursion.

    B_{j,0} is 1 where t_j <= x < t_{j+1}. With r_j = (x - t_j) / (t_{j+d} - t_j), how far x is
    into the support of B_{j,d-1}: B_{j,d} = r_j B_{j,d-1} + (1 - r_{j+1}) B_{j+1,d-1}.

    Args:
        x: ``(N, in)``.
        grid: knots t of each input in ascending order, ``(in, T)``; any spacing. Where knots
            coincide, terms with an empty support count as 0.
        order: degree of the polynomial pieces.

    Returns:
        ``(N, T - 1 - order, in)``: inputs run fastest, so each step of the recursion works on long
        contiguous rows.
    """
    # A transposed grid as an operand would keep every operation from being vectorised.
    x, knots = x.unsqueeze(1), grid.T.contiguous()
    reached = x >= knots
    basis = (reached[:, :-1] & ~reached[:, 1:]).to(x.dtype)
    for degree in range(1, order + 1):
        span = knots[degree:] - knots[:-degree]
        # In place where the operand is a temporary of ours: the time goes into memory traffic.
        into = (x - knots[:-degree]).mul_(torch.where(span > 0, 1 / span, 0))
        rising = into * basis
        basis = (basis[:, 1:] - rising[:, 1:]).add_(rising[:, :-1])
    return basis


def fit_coefficients(x: Tensor, y: Tensor, grid: Tensor, order: int) -> Tensor:
    """Least-squares spline through sampled curves; of several, the one with the smallest norm.

    Args:
        x: ``(N, in)``.
        y: values of the curve from each input to each output, ``(N, in, out)``.
        grid: knots, ``(in, T)``.
        order: degree.

    Returns:
        Coefficients, ``(out, in, T - 1 - order)``, contiguous.
    """
    basis = b_spline_basis(x, grid, order).permute(2, 0, 1)
    # pinv and not lstsq: on a GPU the latter needs full rank, which samples rarely give.
    return torch.einsum("ikn,nio->oik", torch.linalg.pinv(basis), y).contiguous()


def adapted_grid(x: Tensor, size: int, order: int, eps: float, margin: float) -> Tensor:
    """Knots that follow the samples: quantiles, mixed with an even grid over their range.

    Args:
        x: samples, ``(N, in)``.
        size: number of intervals between the outermost samples.
        order: number of evenly spaced knots added at each end.
        eps: share of the even grid; it keeps knots apart where many samples are equal.
        margin: by how much the even grid goes beyond the samples.

    Returns:
        ``(in, size + 2 * order + 1)``.
    """
    x = x.sort(dim=0).values
    # The quantiles are samples, at truncated positions.
    position = torch.linspace(0, len(x) - 1, size + 1, dtype=torch.int64, device=x.device)
    step = (x[-1] - x[0] + 2 * margin) / size
    count = torch.arange(size + 1, device=x.device, dtype=x.dtype).unsqueeze(1)
    inner = eps * (count * step + x[0] - margin) + (1 - eps) * x[position]
    beyond = torch.arange(1, order + 1, device=x.device, dtype=x.dtype).unsqueeze(1) * step
    return torch.cat([inner[:1] - beyond.flip(0), inner, inner[-1:] + beyond]).T.contiguous()
