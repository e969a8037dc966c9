"""What the convolutional KAN layers of torch-conv-kan share: channel groups, dropout and norms.

Each group of input channels has convolutions and a norm of its own, in ModuleLists, and gives one
group of output channels.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["CONVOLUTIONS", "GroupedConv", "bottleneck_channels"]

CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
DROPOUTS: dict[int, type[nn.Module]] = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
INSTANCE_NORMS: dict[int, type[nn.Module]] = {
    1: nn.InstanceNorm1d,
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}


class GroupedConv(nn.Module):
    """A layer ``(N, in, *space)`` to ``(N, out, *space)``; a subclass computes one group.

    Args:
        input_dim, output_dim: number of channels, multiples of ``groups``.
        kernel_size, groups, padding, stride, dilation: as of torch's convolutions.
        dropout: share of channels that a subclass drops where its library does.

    Attributes:
        ndim: number of spatial axes, of the class.
    """

    ndim: ClassVar[int]

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
    ) -> None:
        """See the class."""
        super().__init__()
        if groups < 1 or input_dim % groups or output_dim % groups:
            raise ValueError(
                f"groups={groups} must be positive and divide input_dim={input_dim} "
                f"and output_dim={output_dim}"
            )
        self.inputdim, self.outdim, self.groups = input_dim, output_dim, groups
        self.group_in, self.group_out = input_dim // groups, output_dim // groups
        self.geometry: dict[str, Any] = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
        }
        self.dropout = DROPOUTS[self.ndim](dropout) if dropout > 0 else nn.Identity()

    def convolutions(self, inputs: int, outputs: int, **geometry: Any) -> nn.ModuleList:
        """One convolution a group, without bias; ``geometry`` replaces the layer's."""
        convs = nn.ModuleList()
        for _ in range(self.groups):
            conv = CONVOLUTIONS[self.ndim](
                inputs, outputs, bias=False, **(geometry or self.geometry)
            )
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
            convs.append(conv)
        return convs

    def norms(
        self, channels: int, norm_layer: type[nn.Module] | None, **kwargs: Any
    ) -> nn.ModuleList:
        """One norm a group; the default is InstanceNorm without parameters."""
        norm = norm_layer or INSTANCE_NORMS[self.ndim]
        return nn.ModuleList(norm(channels, **kwargs) for _ in range(self.groups))

    def forward_group(self, x: Tensor, group: int) -> Tensor:
        """``(N, in / groups, *space)`` to ``(N, out / groups, *space)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, *space)`` to ``(N, out, *space)``."""
        parts = torch.split(x, self.group_in, dim=1)
        return torch.cat([self.forward_group(part, g) for g, part in enumerate(parts)], dim=1)


def bottleneck_channels(inputs: int, outputs: int, reduction: float, at_least: int) -> int:
    """Inner channels of a bottleneck: the larger number divided by ``reduction``.

    Where that is less than ``at_least``: the smallest of ``at_least``, ``inputs``, ``outputs``.
    """
    inner = int(max(inputs, outputs) / reduction)
    return inner if inner >= at_least else min(at_least, inputs, outputs)
