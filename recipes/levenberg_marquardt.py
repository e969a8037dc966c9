"""Least squares by Levenberg and Marquardt: for models of up to a few thousand parameters.

One step solves (J^T J + damping diag(J^T J)) change = -J^T r for residuals r and their Jacobian J;
the damping falls where a step makes the sum of squares smaller and rises where it does not. Torch
and its well-kept companions have no such optimiser; scipy's cannot draw new points for each step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

__all__ = ["LevenbergMarquardt"]

Residuals = Callable[[nn.Module, Tensor], Tensor]


class _Residuals(nn.Module):
    """A model and what it is judged by as one function of parameters and points."""

    def __init__(self, model: nn.Module, residuals: Residuals) -> None:
        super().__init__()
        self.model, self.residuals = model, residuals

    def forward(self, x: Tensor) -> Tensor:
        return self.residuals(self.model, x)


class LevenbergMarquardt(torch.optim.Optimizer):
    """See the module's docstring.

    Args:
        model: parameters that need gradients are trained, best in float64.
        residuals: of the model at ``(N, d)`` points: ``(N,)``, that of a point by itself. Must not
            use ``torch.autograd.grad``.
        damping: the first.
        chunk: points whose rows of the Jacobian are made at once.
    """

    TRIES = 10  # more damping each time, until a step is an improvement

    def __init__(
        self, model: nn.Module, residuals: Residuals, damping: float = 0.01, chunk: int = 100
    ) -> None:
        """See the class."""
        super().__init__([p for p in model.parameters() if p.requires_grad], {"damping": damping})
        self._function, self._chunk = _Residuals(model, residuals), chunk
        named = self._function.named_parameters()
        self._parameters = {name: p for name, p in named if p.requires_grad}

    def _parts(self, values: Tensor) -> dict[str, Tensor]:
        """One vector, cut into what each parameter has of it."""
        pieces = torch.split(values, [p.numel() for p in self._parameters.values()])
        named = zip(self._parameters.items(), pieces, strict=True)
        return {name: piece.view_as(p) for (name, p), piece in named}

    def _at(self, values: Tensor, x: Tensor) -> Tensor:
        """Residuals at ``x`` of the model with all parameters in one vector."""
        y: Tensor = functional_call(self._function, self._parts(values), (x,))
        return y

    def _jacobian(self, values: Tensor, x: Tensor) -> Tensor:
        row = vmap(grad(lambda v, point: self._at(v, point[None])[0]), (None, 0))
        return torch.cat([row(values, some) for some in torch.split(x, self._chunk)])

    @torch.no_grad()
    def step(self, x: Tensor) -> float:  # type: ignore[override]
        """Do one step for the points ``x``; the mean square of the residuals before it."""
        group: dict[str, Any] = self.param_groups[0]
        values = torch.cat([p.detach().flatten() for p in self._parameters.values()])
        r, jacobian = self._at(values, x), self._jacobian(values, x)
        before = r.square().mean()
        square, slope = jacobian.T @ jacobian, jacobian.T @ r
        scale = square.diagonal()
        scale = scale + 1e-8 * scale.max()  # a parameter that nothing depends on stays
        for _ in range(self.TRIES):
            factor, failed = torch.linalg.cholesky_ex(square + torch.diag(group["damping"] * scale))
            if not failed:
                change = torch.cholesky_solve(slope[:, None], factor)[:, 0]
                if self._at(values - change, x).square().mean() < before:
                    for name, part in self._parts(change).items():
                        self._parameters[name].sub_(part)
                    group["damping"] = max(group["damping"] / 3, 1e-10)
                    break
            group["damping"] *= 4
        return float(before)
