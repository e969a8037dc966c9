"""Plain stacks of KAN convolutions with a linear head: the networks of MetaKAN's Tables 3 and 9.

3 x 3 kernels, one conv layer after the other, mean over all pixels, dropout, ``Linear``. Which
tensors a layer has besides its coefficients is its family's affair: norms of outputs (B-splines,
Legendre, Gram) or of inputs (RBF), a PReLU, centres, the weights of Gram's recurrence.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["CHANNELS", "STRIDES", "ConvNet", "conv_net"]

CHANNELS = {4: (32, 64, 128, 256), 8: (16, 32, 64, 128, 256, 256, 512, 512)}
"""Output channels by number of layers, as the counts of the tables imply; the text differs."""

STRIDES = {4: (1, 2, 2, 1), 8: (1, 2, 2, 1, 1, 2, 1, 1)}


class ConvNet(nn.Module):
    """See the module's docstring.

    Args:
        layer: class of the layers, ``layer(in, out, kernel_size=, stride=, padding=, dropout=,
            **options)``: one of the 2-D layers of this package.
        inputs: channels of the images.
        classes: number of outputs.
        channels, strides: of the layers, in order.
        dropout: of all layers but the first.
        head_dropout: before the head.
        options: further arguments of ``layer``.
    """

    def __init__(
        self,
        layer: Callable[..., nn.Module],
        inputs: int,
        classes: int,
        channels: Sequence[int] = CHANNELS[4],
        strides: Sequence[int] = STRIDES[4],
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__()
        widths = itertools.pairwise([inputs, *channels])
        self.layers = nn.Sequential(
            *(
                layer(
                    width,
                    following,
                    kernel_size=3,
                    stride=stride,
                    padding=1,
                    dropout=dropout if place else 0.0,
                    **options,
                )
                for place, ((width, following), stride) in enumerate(
                    zip(widths, strides, strict=True)
                )
            )
        )
        self.output = nn.Sequential(nn.Dropout(head_dropout), nn.Linear(channels[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, inputs, height, width)`` to ``(N, classes)``."""
        y: Tensor = self.output(self.layers(x).mean((2, 3)))
        return y


def conv_net(
    layer: Callable[..., nn.Module], widths: tuple[int, int], depth: int, **options: Any
) -> ConvNet:
    """Network of the tables with 4 or 8 layers, with batch norm.

    Args:
        layer: see :class:`ConvNet`.
        widths: channels of the images, number of classes.
        depth: a key of :data:`CHANNELS`.
        options: see :class:`ConvNet`.
    """
    inputs, classes = widths
    channels, strides = CHANNELS[depth], STRIDES[depth]
    return ConvNet(layer, inputs, classes, channels, strides, norm_layer=nn.BatchNorm2d, **options)
