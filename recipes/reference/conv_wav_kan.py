"""Wavelet convolutions with the names and layouts of torch-conv-kan's ``WavKANConv{1,2,3}DLayer``.

y = norm(base_conv(silu(x)) + wavelet_out(s)), for each group of channels
s_o = conv(psi((x - translation[o]) / scale[o]), wavelet_weights[o]), for each output channel o

psi is a wavelet of :mod:`recipes.reference.wav_kan`. ``wavelet_out``, a convolution with a kernel
of size 1, mixes the output channels. The three versions compute the same and differ in where
``wavelet_weights`` lie: ``base`` has a ModuleList of convolutions (1, in, *kernel), ``fast`` one
grouped convolution (out, in, *kernel), ``fast_plus_one`` one with the input channels as an axis,
(out, 1, in, *kernel).
"""

from typing import Any

import torch
from torch import Tensor, nn

from recipes.reference.conv_groups import CONVOLUTIONS, GroupedConv
from recipes.reference.wav_kan import WAVELETS

__all__ = [
    "WavKANConv1DLayer",
    "WavKANConv2DLayer",
    "WavKANConv3DLayer",
    "WavKANConvNDLayer",
    "WaveletConvND",
    "WaveletConvNDFast",
    "WaveletConvNDFastPlusOne",
]


class WaveletConvND(nn.Module):
    """The wavelet branch of one group, version ``base``.

    Args:
        ndim: number of spatial axes.
        inputs, outputs: number of channels.
        geometry: ``kernel_size``, ``stride``, ``padding`` and ``dilation``.
        wavelet_type: a key of ``WAVELETS``.

    Attributes:
        scale, translation: ``(1, out, in, 1, ...)``; scale starts at 1, translation at 0.
    """

    def __init__(
        self, ndim: int, inputs: int, outputs: int, geometry: dict[str, Any], wavelet_type: str
    ) -> None:
        """See the class."""
        super().__init__()
        self.ndim, self.wavelet_type = ndim, wavelet_type
        self.input_dim, self.output_dim = inputs, outputs
        edges = (1, outputs, inputs, *[1] * ndim)
        self.scale = nn.Parameter(torch.ones(edges))
        self.translation = nn.Parameter(torch.zeros(edges))
        self.wavelet_weights = self.make_weights(geometry)
        self.wavelet_out = CONVOLUTIONS[ndim](outputs, outputs, 1, bias=False)
        for weight in self.wavelet_weights.parameters():
            nn.init.kaiming_uniform_(weight, nonlinearity="linear")
        nn.init.kaiming_uniform_(self.wavelet_out.weight, nonlinearity="linear")

    def make_weights(self, geometry: dict[str, Any]) -> nn.Module:
        """Make the module that holds the wavelets' weights."""
        conv = CONVOLUTIONS[self.ndim]
        return nn.ModuleList(
            conv(self.input_dim, 1, bias=False, **geometry) for _ in range(self.output_dim)
        )

    def weighted(self, waves: Tensor) -> Tensor:
        """``(N, out, in, *space)`` to ``(N, out, *space)``."""
        convs: nn.ModuleList = self.wavelet_weights  # type: ignore[assignment]
        return torch.cat([conv(waves[:, o]) for o, conv in enumerate(convs)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, *space)`` to ``(N, out, *space)``."""
        u = (x.unsqueeze(1) - self.translation) / self.scale
        waves = WAVELETS[self.wavelet_type](u.movedim(2, -1)).movedim(
            -1, 2
        )  # they take inputs last
        y: Tensor = self.wavelet_out(self.weighted(waves))
        return y


class WaveletConvNDFast(WaveletConvND):
    """The wavelet branch of one group, version ``fast``."""

    def make_weights(self, geometry: dict[str, Any]) -> nn.Module:
        """Make the module that holds the wavelets' weights."""
        inputs, outputs = self.input_dim, self.output_dim
        conv = CONVOLUTIONS[self.ndim]
        return conv(inputs * outputs, outputs, groups=outputs, bias=False, **geometry)

    def weighted(self, waves: Tensor) -> Tensor:
        """``(N, out, in, *space)`` to ``(N, out, *space)``."""
        y: Tensor = self.wavelet_weights(waves.flatten(1, 2))
        return y


class WaveletConvNDFastPlusOne(WaveletConvND):
    """The wavelet branch of one group, version ``fast_plus_one``: input channels are an axis."""

    def make_weights(self, geometry: dict[str, Any]) -> nn.Module:
        """Make the module that holds the wavelets' weights."""
        outputs = self.output_dim
        first = {"kernel_size": self.input_dim, "stride": 1, "padding": 0, "dilation": 1}
        plus_one: dict[str, Any] = {
            name: (first[name], *(size if isinstance(size, tuple) else [size] * self.ndim))
            for name, size in geometry.items()
        }
        conv = CONVOLUTIONS[self.ndim + 1]
        return conv(outputs, outputs, groups=outputs, bias=False, **plus_one)

    def weighted(self, waves: Tensor) -> Tensor:
        """``(N, out, in, *space)`` to ``(N, out, *space)``."""
        y: Tensor = self.wavelet_weights(waves).squeeze(2)
        return y


VERSIONS = {
    "base": WaveletConvND,
    "fast": WaveletConvNDFast,
    "fast_plus_one": WaveletConvNDFastPlusOne,
}


class WavKANConvNDLayer(GroupedConv):
    """One layer; see the module's docstring for the formula.

    Args:
        input_dim, output_dim, kernel_size, groups, padding, stride, dilation: see
            :class:`GroupedConv`.
        dropout: share of input channels dropped in the wavelet branch.
        wavelet_type: a key of ``WAVELETS``.
        norm_layer, norm_kwargs: class of the norm and its arguments; default: BatchNorm.
        wav_version: a key of ``VERSIONS``; ``fast_plus_one`` is for one and two axes.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kernel_size: int | tuple[int, ...],
        groups: int = 1,
        padding: int | tuple[int, ...] = 0,
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        dropout: float = 0.0,
        wavelet_type: str = "mexican_hat",
        norm_layer: type[nn.Module] | None = None,
        wav_version: str = "fast",
        **norm_kwargs: Any,
    ) -> None:
        """See the class."""
        super().__init__(
            input_dim, output_dim, kernel_size, groups, padding, stride, dilation, dropout
        )
        if wavelet_type not in WAVELETS:
            raise ValueError(
                f"wavelet_type={wavelet_type!r}; expected one of {', '.join(WAVELETS)}"
            )
        if wav_version not in VERSIONS or (wav_version == "fast_plus_one" and self.ndim == 3):
            raise ValueError(
                f"wav_version={wav_version!r} with {self.ndim} axes; expected one of "
                f"{', '.join(VERSIONS)}, the last with 1 or 2 axes"
            )
        self.base_activation = nn.SiLU()
        self.base_conv = self.convolutions(self.group_in, self.group_out)
        branch = VERSIONS[wav_version]
        self.wavelet_conv = nn.ModuleList(
            branch(self.ndim, self.group_in, self.group_out, self.geometry, wavelet_type)
            for _ in range(groups)
        )
        batch_norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
        self.layer_norm = self.norms(
            self.group_out, norm_layer or batch_norms[self.ndim], **norm_kwargs
        )

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        y = self.base_conv[group](self.base_activation(x)) + self.wavelet_conv[group](
            self.dropout(x)
        )
        out: Tensor = self.layer_norm[group](y)
        return out


class WavKANConv1DLayer(WavKANConvNDLayer):
    """For ``(N, channels, length)``."""

    ndim = 1


class WavKANConv2DLayer(WavKANConvNDLayer):
    """For ``(N, channels, height, width)``."""

    ndim = 2


class WavKANConv3DLayer(WavKANConvNDLayer):
    """For ``(N, channels, depth, height, width)``."""

    ndim = 3
