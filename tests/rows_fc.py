"""Rows for the fully connected layers of torch-conv-kan and Wav-KAN, and for early pykan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from recipes.reference import fast_kan, fc_poly, fc_spline, pykan_early, relu_kan, wav_kan
from tests import upstream
from tests.case import Case


def _as_is(layer: nn.Module) -> None:
    pass


def _drawn_wavelets(layer: nn.Module) -> None:
    """Draw scale and translation around their constant start; samples no longer share norms."""
    nn.init.normal_(layer.scale, 1, 0.1)
    nn.init.normal_(layer.translation, 0, 0.1)
    layer.eval()


def _inner_edges_only(layer: nn.Module) -> None:
    """Make the inner features those outside, and nothing else that joins inputs and outputs."""
    nn.init.zeros_(layer.base_weights)
    nn.init.eye_(layer.inner_proj.weight)
    nn.init.eye_(layer.outer_proj.weight)


def _kans_layers() -> ModuleType:
    return upstream.torch_conv_kan("kans.layers")


@dataclass(frozen=True)
class Family:
    """A class of layers: where it is, how it is built, what an adapter must find in it."""

    adapter: str
    reference: ModuleType
    stem: str
    dim_w: int
    arguments: tuple[Any, ...] = ()  # after the numbers of inputs and outputs
    options: dict[str, Any] = field(default_factory=dict)
    real: Callable[[], ModuleType] = _kans_layers
    prepare: Callable[[nn.Module], None] = _as_is
    bare: Callable[[nn.Module], None] = _as_is
    sizes: tuple[int, int, int] = (4, 5, 3)
    any_size: bool = True

    def layer(self, real: bool, inputs: int, outputs: int) -> nn.Module:
        """Make a layer of the real library, or of the reference."""
        cls = getattr(self.real() if real else self.reference, self.stem)
        if self.stem == "ReLUKANLayer":
            layer = cls(inputs, *self.arguments, outputs)
        elif real and self.stem == "JacobiKANLayer":
            layer = _with_dtype_of_input(cls)(inputs, outputs, *self.arguments)
        else:
            layer = cls(inputs, outputs, *self.arguments, **self.options)
        self.prepare(layer)
        return layer

    def row(self, name: str, real: bool) -> Case:
        """Two layers in a Sequential."""
        first, middle, last = self.sizes
        return Case(
            f"{'upstream-' if real else ''}{name}",
            lambda: nn.Sequential(self.layer(real, first, middle), self.layer(real, middle, last)),
            self.adapter,
            self.dim_w,
            ("0", "1"),
            # the subclass that lets the real one run in float64 is a local class
            pickles=not (real and self.stem == "JacobiKANLayer"),
            layer=(lambda i, o, groups, ndim: self.layer(real, i, o)) if self.any_size else None,
            layer_kwargs=NO_NORM if real and self.stem == "FastKANLayer" else {},
            bare=self.bare,
        )


NO_NORM = {"time_benchmark": True}
"""What the forward of torch-conv-kan's FastKANLayer calls leaving its norm out."""


def _with_dtype_of_input(cls: type[nn.Module]) -> type[nn.Module]:
    """Subclass whose forward makes its tensors in the dtype of the input, not in the default."""

    class JacobiKANLayer(cls):
        def forward(self, x: Tensor) -> Tensor:
            before = torch.get_default_dtype()
            torch.set_default_dtype(x.dtype)
            try:
                return super().forward(x)
            finally:
                torch.set_default_dtype(before)

    return JacobiKANLayer


def _drokin(kind: str, *args: Any, **kwargs: Any) -> Family:
    return Family(f"torch-conv-kan/{kind}", *args, **kwargs)


def _wav_kan(wavelet: str) -> Family:
    return Family(
        "wav-kan",
        wav_kan,
        "KANLinear",
        3,
        (wavelet,),
        real=upstream.wav_kan,
        prepare=_drawn_wavelets,
    )


FAMILIES = {
    "torch-conv-kan-spline": _drokin("spline", fc_spline, "KANLayer", 9),
    "torch-conv-kan-spline-k2-G3": _drokin("spline", fc_spline, "KANLayer", 6, (3, 2)),
    "torch-conv-kan-legendre": _drokin("legendre", fc_poly, "KALNLayer", 4, (2,)),
    "torch-conv-kan-chebyshev": _drokin("chebyshev", fc_poly, "ChebyKANLayer", 4, (3,)),
    "torch-conv-kan-gram": _drokin("gram", fc_poly, "GRAMLayer", 5),
    "torch-conv-kan-bottleneck-gram": _drokin(
        "bottleneck-gram",
        fc_poly,
        "BottleNeckGRAMLayer",
        3,
        (2,),
        bare=_inner_edges_only,
        sizes=(4, 4, 4),  # 4 inner features as well, so that each of them is one outside
        any_size=False,
    ),
    "torch-conv-kan-jacobi": _drokin("jacobi", fc_poly, "JacobiKANLayer", 4, (2,)),
    "torch-conv-kan-relu": _drokin("relu", relu_kan, "ReLUKANLayer", 5, (3, 2)),
    "torch-conv-kan-wavelet": _drokin(
        "wavelet", wav_kan, "WavKANLayer", 4, prepare=_drawn_wavelets
    ),
    "wav-kan-mexican-hat": _wav_kan("mexican_hat"),
    "wav-kan-shannon": _wav_kan("shannon"),
}

COPY_OF_FAST_KAN = Family("fast-kan", fast_kan, "FastKANLayer", 4, options={"num_grids": 3})

ROWS = [
    *(family.row(name, real) for real in (False, True) for name, family in FAMILIES.items()),
    COPY_OF_FAST_KAN.row("torch-conv-kan-fast", True),  # the reference has rows of its own
    Case(
        "pykan-early",
        lambda: pykan_early.KAN([4, 5, 3], grid=5),
        "pykan-early",
        9,
        layers=("act_fun.0", "act_fun.1"),
        output=lambda y: y[0] if isinstance(y, tuple) else y,
        layer=lambda i, o, groups, ndim: pykan_early.KANLayer(i, o, num=3, k=2),
    ),
]
