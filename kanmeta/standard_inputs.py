"""Inputs made up where there are no data: of unit variance, alike where the coefficients are.

What a network was trained on is unknown, but two things about it are not. Inputs of one row tend to
go together: most of an image is background. And coefficients of inputs that went together in
training were pulled in the same directions. For input i of a layer with coefficients w_oik, less
their means over o and i,

    x_i = sqrt(r) c + sqrt(1 - r) sum_ok g_ok w_oik / ||w_.i.||        g, c ~ N(0, 1), r ~ U(0, 1)

with one r and one c a row, or an image. Every x_i is N(0, 1), but for an input with all
coefficients at their means, and with c left out the correlation of two inputs is that of their
coefficients.
"""

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from kanmeta.binding import Binding
from kanmeta.layer_metric import Call, watching
from kanmeta.spec import LayerSpec

__all__ = ["StandardInputs", "standard_inputs"]

_log = logging.getLogger(__name__)

_ROWS = 128
_DIRECTIONS = 2048  # of the (o, k) at most, bounds the work for wide layers
_PROBE = 2  # rows that a model is asked to take
_SIDES = (16, 28, 32, 64)  # of images that are tried; a kernel fits twice into what is left


class StandardInputs:
    """Batches of inputs of a layer, new ones every time, without end.

    Args:
        coefficients: of the layer, ``(*edge_shape, dim_w)``.
        spec: of the layer.
        generator: CPU generator; default: torch's global one.
        side: of images, in pixels, where the layer is a convolution.
    """

    def __init__(
        self,
        coefficients: Tensor,
        spec: LayerSpec,
        generator: torch.Generator | None,
        side: int = _SIDES[0],
    ) -> None:
        """See the class."""
        self._generator = generator
        inputs = [spec.edge_axes.index(a) for a in ("g", "i") if a in spec.edge_axes]
        w = coefficients - coefficients.mean(tuple(range(coefficients.ndim - 1)), keepdim=True)
        w = w.movedim(inputs, list(range(-len(inputs), 0))).flatten(-len(inputs)).flatten(0, -2)
        if len(w) > _DIRECTIONS:
            some = torch.randperm(len(w), generator=generator, device="cpu")[:_DIRECTIONS]
            w = w[some.to(w.device)]
        if len(w) > w.shape[1]:  # w = QR, and Q's rotation of normal numbers changes nothing
            w = torch.linalg.qr(w.float(), mode="r").R.to(w)
        self._directions = w / w.norm(dim=0).clamp(min=torch.finfo(w.dtype).tiny)
        self._image = [max(side, 2 * size) for size in spec.kernel]

    def __iter__(self) -> Iterator[Tensor]:
        """``(128, i)``, or for a convolution ``(128, i, *space)``."""
        while True:
            yield self.batch()

    def batch(self, rows: int = _ROWS) -> Tensor:
        """``(rows, i)``, or for a convolution ``(rows, i, *space)``."""
        like = self._directions
        ones = [1] * len(self._image)
        share = torch.rand(rows, 1, *ones, generator=self._generator, device="cpu").to(like)
        common = self._normal(rows, 1, *ones)
        own = self._normal(rows, *self._image, len(like)) @ like  # inputs last
        own = own.movedim(-1, 1)
        made: Tensor = share.sqrt() * common + (1 - share).sqrt() * own
        return made

    def _normal(self, *shape: int) -> Tensor:
        x = torch.randn(*shape, generator=self._generator, device="cpu")
        return x.to(self._directions)


@torch.no_grad()
def standard_inputs(
    teacher: nn.Module, layers: Mapping[str, Binding], generator: torch.Generator | None
) -> StandardInputs | None:
    """Inputs of the model, which are those of its first layer; images of the first side that fits.

    Returns:
        None where the model does not take them, brings them into another shape before its first
        layer, or does not call all layers for them.
    """
    name, binding = next(iter(layers.items()))
    coefficients = binding.spec.read(teacher.get_submodule(name))
    for side in _SIDES if len(binding.spec.kernel) in (1, 2) else _SIDES[:1]:
        made = StandardInputs(coefficients, binding.spec, generator, side)
        x = made.batch(_PROBE)
        try:
            with watching(teacher, list(layers)) as calls:
                teacher(x)
        except Exception as error:  # a forward of anybody's
            _log.info("the model takes no %s for its layer %r: %s", tuple(x.shape), name, error)
            continue
        first = [call[0] for call in calls.values() if call and call[0].output.isfinite().all()]
        if len(first) == len(layers) and _shape(calls[name][0]) == x.shape:
            return made
    return None


def _shape(call: Call) -> torch.Size | None:
    """Shape of the first argument of a call, if it is a tensor."""
    first = next(iter((*call.args, *call.kwargs.values())), None)
    return first.shape if isinstance(first, Tensor) else None
