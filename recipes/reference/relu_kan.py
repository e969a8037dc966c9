"""ReLU-KAN layer with the names and layouts of torch-conv-kan (ReLU-KAN, arXiv 2406.02075).

y_o = bias[o] + sum_i sum_n w[o,i,n] R_in(x_i)
R_in(x) = (r relu(x - phase_low[i,n]) relu(phase_high[i,n] - x))^2,  r = (2 g / (k + 1))^2

R_in is a bump of height 1, which is (k + 1) / g wide and starts at (n - k) / g.
The coefficients are the weight of a Conv2d, (out, 1, g + k, in), but the library only reshapes its
(in, g + k) basis to that kernel's shape: read flat, the weight is ``w[o,i,n]``.
Difference from the library: the phases are contiguous, so that optimisers can step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ReLUKANLayer", "relu_bumps"]


def relu_bumps(x: Tensor, low: Tensor, high: Tensor, height: float) -> Tensor:
    """``(height relu(x - low) relu(high - x))^2``; arguments broadcast."""
    return (height * torch.relu(x - low) * torch.relu(high - x)).square()


class ReLUKANLayer(nn.Module):
    """One layer; see the module's docstring for the formula.

    Args:
        input_size, output_size: number of inputs and outputs.
        g: bumps start every 1 / g.
        k: bumps overlap k others on each side. An edge has g + k coefficients.
        train_ab: whether the phases are trained.

    Attributes:
        phase_low, phase_high: ends of the bumps, ``(in, g + k)``.
        equal_size_conv: its weight ``(out, 1, g + k, in)`` holds w as ``(out, in * (g + k))``.
    """

    def __init__(
        self, input_size: int, g: int, k: int, output_size: int, train_ab: bool = True
    ) -> None:
        """See the class; the order of arguments is the library's."""
        super().__init__()
        self.g, self.k, self.r = g, k, (2 * g / (k + 1)) ** 2
        self.input_size, self.output_size = input_size, output_size
        low = (torch.arange(-k, g) / g).repeat(input_size, 1)
        self.phase_low = nn.Parameter(low, requires_grad=train_ab)
        self.phase_high = nn.Parameter(low + (k + 1) / g, requires_grad=train_ab)
        self.equal_size_conv = nn.Conv2d(1, output_size, (g + k, input_size))

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in)`` to ``(*, out)``."""
        basis = relu_bumps(x.unsqueeze(-1), self.phase_low, self.phase_high, self.r)
        conv = self.equal_size_conv
        return F.linear(basis.flatten(-2), conv.weight.flatten(1), conv.bias)
