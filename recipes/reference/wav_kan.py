"""Wavelet KAN layers with the names and layouts of Wav-KAN, and of its variant with a base branch.

KANLinear:   y_o = BatchNorm(sum_i wavelet_weights[o,i] psi(u_oi))_o
WavKANLayer: y_o = BatchNorm(sum_i wavelet_weights[o,i] psi(u_oi) + weight1[o,i] silu(x_i))_o
             u_oi = (x_i - translation[o,i]) / scale[o,i]

``KANLinear`` and ``KAN`` are those of Wav-KAN (arXiv 2405.12832), ``WavKANLayer`` that of
torch-conv-kan. Both have the same tensors, but ``weight1`` of the former is never used.
Difference from the library: ``unused_weight=False`` leaves it out, as the counts of MetaKAN's
Table 7 do.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KAN", "WAVELETS", "KANLinear", "WavKANLayer", "wavelet_sum"]


def mexican_hat(u: Tensor) -> Tensor:
    """Second derivative of a Gaussian with unit L2 norm: 2 / (sqrt(3) pi^(1/4)) (u^2 - 1) g(u)."""
    height: float = 2 / (math.sqrt(3) * math.pi**0.25)
    return height * (u.square() - 1) * gaussian(u)


def morlet(u: Tensor) -> Tensor:
    """Wave of frequency 5 under a Gaussian: cos(5 u) g(u)."""
    return torch.cos(5 * u) * gaussian(u)


def dog(u: Tensor) -> Tensor:
    """First derivative of a Gaussian: -u g(u)."""
    return -u * gaussian(u)


def meyer(u: Tensor) -> Tensor:
    """Sine that the smooth step of Meyer's construction cuts off: sin(pi |u|) cos(pi/2 nu(t)).

    t = 2 |u| - 1, held between 0 and 1; nu(t) = t^4 (35 - 84 t + 70 t^2 - 20 t^3) rises from 0 to 1
    with three vanishing derivatives at both ends.
    """
    v = u.abs()
    t = (2 * v - 1).clamp(0, 1)
    rise = t**4 * (35 - 84 * t + 70 * t**2 - 20 * t**3)
    return torch.sin(math.pi * v) * torch.cos(math.pi / 2 * rise)


def shannon(u: Tensor) -> Tensor:
    """sin(u) / u times a Hamming window over the *inputs*, the last axis of ``u``, as the library.

    The window thus weights input i by 0.54 - 0.46 cos(2 pi i / (in - 1)), whatever u is.
    """
    window = torch.hamming_window(u.shape[-1], periodic=False, dtype=u.dtype, device=u.device)
    return torch.sinc(u / math.pi) * window


def gaussian(u: Tensor) -> Tensor:
    """g(u) = exp(-u^2 / 2)."""
    return torch.exp(-u.square() / 2)


WAVELETS: dict[str, Callable[[Tensor], Tensor]] = {
    "mexican_hat": mexican_hat,
    "morlet": morlet,
    "dog": dog,
    "meyer": meyer,
    "shannon": shannon,
}
"""psi by name; each takes ``(*, out, in)`` and keeps the shape."""


def wavelet_sum(
    x: Tensor, translation: Tensor, scale: Tensor, weights: Tensor, wavelet: str
) -> Tensor:
    """Sum over i of weights[o,i] psi((x_i - translation[o,i]) / scale[o,i]): ``(N, out)``."""
    u = (x.unsqueeze(-2) - translation) / scale
    return (WAVELETS[wavelet](u) * weights).sum(-1)


# Eager, each operation reads and writes (N, out, in) numbers: seven times as long on a CPU.
_compiled_sum = torch.compile(wavelet_sum, dynamic=True)


class KANLinear(nn.Module):
    """Layer of Wav-KAN; see the module's docstring for the formula.

    Args:
        in_features, out_features: number of inputs and outputs.
        wavelet_type: a key of :data:`WAVELETS`.
        unused_weight: whether ``weight1`` exists.

    Attributes:
        scale, translation, wavelet_weights: ``(out, in)``; scale starts at 1, translation at 0.
        weight1: ``(out, in)``; no output depends on it.
        bn: batch normalisation of the outputs.
        compiled: whether ``torch.compile`` fuses the wavelets; needs a C++ compiler. May be set.
    """

    compiled = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        wavelet_type: str = "mexican_hat",
        unused_weight: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        if wavelet_type not in WAVELETS:
            raise ValueError(
                f"wavelet_type={wavelet_type!r}; expected one of {', '.join(WAVELETS)}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.wavelet_type = wavelet_type
        edges = (out_features, in_features)
        self.scale = nn.Parameter(torch.ones(edges))
        self.translation = nn.Parameter(torch.zeros(edges))
        if unused_weight:
            self.weight1 = nn.Parameter(torch.empty(edges))
        self.wavelet_weights = nn.Parameter(torch.empty(edges))
        self.bn = nn.BatchNorm1d(out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first values with torch's global generator."""
        nn.init.kaiming_uniform_(self.wavelet_weights, a=math.sqrt(5))
        if hasattr(self, "weight1"):
            nn.init.kaiming_uniform_(self.weight1, a=math.sqrt(5))

    def wavelet_transform(self, x: Tensor) -> Tensor:
        """Weighted sum of the wavelets: ``(N, in)`` to ``(N, out)``."""
        total = _compiled_sum if self.compiled else wavelet_sum
        y: Tensor = total(x, self.translation, self.scale, self.wavelet_weights, self.wavelet_type)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in)`` to ``(N, out)``."""
        y: Tensor = self.bn(self.wavelet_transform(x))
        return y


class WavKANLayer(KANLinear):
    """Layer of torch-conv-kan: as :class:`KANLinear`, with ``weight1`` in use."""

    def __init__(
        self, in_features: int, out_features: int, wavelet_type: str = "mexican_hat"
    ) -> None:
        """See :class:`KANLinear`."""
        super().__init__(in_features, out_features, wavelet_type)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in)`` to ``(N, out)``."""
        y: Tensor = self.bn(self.wavelet_transform(x) + F.linear(F.silu(x), self.weight1))
        return y


class KAN(nn.Module):
    """Layers of :class:`KANLinear` one after the other.

    Args:
        layers_hidden: widths, inputs first and outputs last.
        wavelet_type, unused_weight: see :class:`KANLinear`.
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        wavelet_type: str = "mexican_hat",
        unused_weight: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        self.layers = nn.ModuleList(
            KANLinear(width, following, wavelet_type, unused_weight)
            for width, following in itertools.pairwise(layers_hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, widths[0])`` to ``(N, widths[-1])``."""
        for layer in self.layers:
            x = layer(x)
        return x
