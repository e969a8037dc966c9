"""Rows for the KAN packages of the package index: those of ``KANMETA_PACKAGE``, else none."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests import packages
from tests.case import Case

PAIR = ("0", "1")
"""Names of two layers in a Sequential."""


def _row(
    name: str,
    adapter: str,
    dim_w: int,
    cls: type[nn.Module],
    widths: tuple[int, int, int] = (4, 5, 3),
    drawn: Sequence[str] = (),
    **kwargs: Any,
) -> Case:
    """Row of two layers, one after the other.

    Args:
        name, adapter, dim_w: of the row.
        cls: the layer's class.
        widths: of the model.
        drawn: Parameters that the library starts at a constant; drawn around it here.
        **kwargs: of the layer's constructor.
    """

    def layer(inputs: int, outputs: int, groups: int = 1, ndim: int = 0) -> nn.Module:
        made = cls(inputs, outputs, **kwargs)
        for parameter in drawn:
            start = getattr(made, parameter)
            nn.init.normal_(start, start.mean().item(), 0.1)
        return made

    def build() -> nn.Module:
        return nn.Sequential(layer(*widths[:2]), layer(*widths[1:]))

    return Case(name, build, adapter, dim_w, PAIR, layer=layer)


def _subclass(cls: type[nn.Module], forward: Callable[..., Tensor]) -> type[nn.Module]:
    """Subclass of the same name with another forward; pickle finds it in this module."""
    made = type(cls.__name__, (cls,), {"forward": forward, "__module__": __name__})
    return globals().setdefault(cls.__name__, made)


def _with_dtype_of_input(cls: type[nn.Module]) -> type[nn.Module]:
    """Subclass that can be used in float64: its forward makes tensors of torch's default dtype."""

    @torch.compiler.disable  # compiled, they would be of float32 whatever the default
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        before = torch.get_default_dtype()
        torch.set_default_dtype(x.dtype)
        try:
            return cls.forward(self, x)
        finally:
            torch.set_default_dtype(before)

    return _subclass(cls, forward)


def _convkan() -> list[Case]:
    theirs = packages.load("convkan").KANLinear

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        """``(N, groups * in)`` to ``(N, groups * out)``; the library has groups first."""
        x = x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        return theirs.forward(self, x).transpose(0, 1).flatten(1)

    cls = _subclass(theirs, forward)

    def layer(inputs: int, outputs: int, groups: int, ndim: int = 0, **kwargs: Any) -> nn.Module:
        return cls(inputs // groups, outputs // groups, groups=groups, **kwargs)

    def two(groups: int, **kwargs: Any) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(layer(4, 6, groups, **kwargs), layer(6, 2, groups, **kwargs))

    other = two(1, enable_standalone_scale_spline=False, spline_order=2, grid_size=3)
    return [
        Case("convkan-groups", two(2), "convkan", 9, PAIR, layer=layer, groups=True),
        Case("convkan-no-scaler", other, "convkan", 6, PAIR),
    ]


def _flashkan() -> list[Case]:
    # As it is, the basis is compiled by inductor: slow to start, and has no second derivatives.
    layer, basis = packages.load("flashkan.layer"), packages.load("flashkan.basis")
    layer.bspline_basis = basis.bspline_basis_eager
    # Few intervals: the basis is a difference of cubes, which cancel in half precision.
    return [_row("flashkan", "flashkan", 6, packages.load("flashkan").KANLayer, grid_size=2)]


def _inkan() -> list[Case]:
    row = functools.partial(_row, cls=packages.load("inkan").KANLayer, compile_basis=False)
    return [
        row("inkan-dense", "inkan", 9, contraction="dense", basis_mode="dense"),
        row("inkan-direct", "inkan", 6, contraction="direct", grid_size=2),
    ]


def _kanx() -> list[Case]:
    library = packages.load("kanx.torch")
    linear, matrix = library.KANLinear, library.MatrixKANLinear
    return [
        _row("kanx", "kanx", 9, linear, trainable_grid=True),
        _row("kanx-square", "kanx", 9, linear, (4, 4, 4)),  # all shapes are efficient-kan's
        _row("kanx-matrix", "kanx", 6, matrix, grid_size=3, spline_order=2),
    ]


def _deep_kan() -> list[Case]:
    library = packages.load("deepkan")
    spline, rbf = library.SplineLinearLayer, library.RBFKANLayer
    chebyshev = _with_dtype_of_input(library.ChebyshevKANLayer)
    plain = {"standalone_spline_scaling": False, "num_knots": 3, "spline_order": 2}
    return [
        _row("deep_kan-spline", "deep-kan", 9, spline),
        _row("deep_kan-spline-no-scales", "deep-kan", 6, spline, **plain),
        _row("deep_kan-chebyshev", "deep-kan/chebyshev", 4, chebyshev, degree=3),
        _row("deep_kan-rbf", "deep-kan/rbf", 4, rbf, num_grids=3),
        _row("deep_kan-rbf-no-base", "deep-kan/rbf", 3, rbf, num_grids=3, use_base_update=False),
    ]


def _kolmarn() -> list[Case]:
    row = functools.partial(_row, cls=packages.load("kan.layers").KANLayer, num_basis=4)
    return [
        row("kolmarn-spline", "kolmarn", 5, knots_trainable=True),
        row("kolmarn-rbf", "kolmarn", 5, basis="rbf"),
    ]


def _mlp_kan() -> list[Case]:
    library = packages.load("mlp_kan")
    mlp, points = library.KANLayer, library.KANInterpoLayer
    dim_w = 2 * 3 + 2 + 2 + 1  # 2 hidden units, 3 features
    return [
        _row("mlp_kan", "mlp_kan", dim_w, mlp, drawn=("B1", "B2"), fcn_hidden=2, fcn_n_sin=1),
        _row("mlp_kan-interpolation", "mlp_kan/interpolation", 6, points, num_x=6),
    ]


def _ikan() -> list[Case]:
    library = packages.load("ikan")
    cheby, fourier = library.ChebyKANLinear, library.FourierKANLinear
    jacobi = _with_dtype_of_input(library.JacobiKANLinear)
    taylor, wavelet = library.TaylorKANLinear, library.WaveletKANLinear
    return [
        _row("ikan-spline", "efficient-kan", 9, library.KANLinear),
        _row("ikan-cheby", "ikan/cheby", 5, cheby, degree=3),
        _row("ikan-fourier", "ikan/fourier", 7, fourier, num_frequencies=3, use_bias=False),
        _row("ikan-jacobi", "ikan/jacobi", 5, jacobi, degree=3),
        _row("ikan-taylor", "ikan/taylor", 4, taylor),
        _row("ikan-wavelet", "ikan/wavelet", 4, wavelet, drawn=("scale", "translation")),
    ]


def _kan_gpt() -> list[Case]:
    def build() -> nn.Module:
        library = packages.load("kan_gpt.kan.KAN")
        return library.KAN([4, 5, 3], grid=5, seed=torch.initial_seed())  # it seeds globally

    return [
        Case(
            "kan_gpt",
            build,
            "pykan-early",
            9,
            ("act_fun.0", "act_fun.1"),
            output=lambda y: y[0] if isinstance(y, tuple) else y,
            pickles=False,  # its symbolic layers hold lambdas
        )
    ]


ROWS = {
    "": list,
    "convkan": _convkan,
    "deep_kan": _deep_kan,
    "flashkan": _flashkan,
    "ikan": _ikan,
    "inkan": _inkan,
    "kan_gpt": _kan_gpt,
    "kanx": _kanx,
    "kolmarn": _kolmarn,
    "mlp_kan": _mlp_kan,
    "single_kan": list,  # its one layer is refused: see own_packages.py
}[packages.CHOSEN]()
