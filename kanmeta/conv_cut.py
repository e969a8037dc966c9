"""How a convolution is cut in tiles of input channels and images: memory and time in one place.

The coefficients of a tile take memory for each input channel, the basis for each image and channel,
a partial sum of the outputs for each image; together they have to fit in the budget. What a cut
costs beside the arithmetic that every cut needs:

* calls: torch takes a while for each of the operations on a tile, however small;
* partial sums of the outputs are read and written once for every tile of channels;
* the weights of a tile are brought into the order that the processor likes for every block of
  images;
* basis channels are processed 16 at a time, the last of a tile as if there were 16.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kanmeta.tiling import halves

__all__ = ["Geometry", "Problem", "Sizes", "cost", "cut"]

# Seconds, measured on one core; only their ratios matter.
_CALLS, _EDGES = 300e-6, 200e-6
_A_SUM, _A_WEIGHT, _A_PRODUCT = 1e-9, 2e-9, 2e-11
_VECTOR = 16


@dataclass(frozen=True)
class Geometry:
    """Of a convolution; one number for each of its spatial axes.

    Attributes:
        kernel, stride, padding, dilation: as of torch's convolutions.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)

    @property
    def options(self) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
        """What ``aten.convolution`` takes after input, weight and bias."""
        lists = [*self.stride], [*self.padding], [*self.dilation]
        return (*lists, False, [0] * len(self.kernel), 1)

    def extent(self, axis: int) -> int:
        """Pixels that the kernel spans."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def outputs(self, space: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the spatial axes of the outputs; below 1 where the kernel does not fit."""
        return tuple(
            (size + 2 * self.padding[a] - self.extent(a)) // self.stride[a] + 1
            for a, size in enumerate(space)
        )


@dataclass(frozen=True)
class Problem:
    """What is to be cut.

    Attributes:
        images, channels: of the input.
        a_channel: numbers that are alive for one channel of a tile, whatever the images.
        a_value: numbers that are alive for one image and channel.
        an_image: numbers that are alive for one image, whatever the channels.
        functions: of the basis.
        weights: coefficients of one channel.
        outputs: numbers of the output of one image.
        products: multiplications for one image and channel.
    """

    images: int
    channels: int
    a_channel: int
    a_value: int
    an_image: int
    functions: int
    weights: int
    outputs: int
    products: int


@dataclass(frozen=True)
class Sizes:
    """Of a tile."""

    images: int
    channels: int


def cut(problem: Problem, numbers: int) -> Sizes:
    """Cheapest tiles of at most ``numbers`` numbers, or of one image and channel."""
    candidates = []
    for images in halves(problem.images):
        room = numbers - images * problem.an_image
        most = room // (problem.a_channel + images * problem.a_value)
        if most > 0:
            parts = -(-problem.channels // most)
            candidates.append(Sizes(images, -(-problem.channels // parts)))
            if _VECTOR <= most < problem.channels:
                candidates.append(Sizes(images, most // _VECTOR * _VECTOR))
    return min(candidates, key=lambda s: cost(problem, s)) if candidates else Sizes(1, 1)


def cost(problem: Problem, sizes: Sizes) -> float:
    """Seconds, roughly, that this cut costs beside what every cut costs."""
    over_images = -(-problem.images // sizes.images)
    over_channels = -(-problem.channels // sizes.channels)
    basis = sizes.channels * problem.functions
    filled = -basis % _VECTOR / basis
    return (
        over_channels * (_EDGES + over_images * _CALLS)
        + over_channels * problem.images * problem.outputs * _A_SUM
        + over_images * problem.channels * problem.weights * _A_WEIGHT
        + problem.images * problem.channels * problem.products * filled * _A_PRODUCT
    )
