"""The case table: one row a layer class (and option). Every row gets the whole contract.

A new adapter is one more row here.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from recipes.reference import efficient_kan, fast_kan
from tests import packages, upstream
from tests.case import Case


def _efficient(get: Callable[[], Any], **kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = get()
        sizes = ((4, 5), (5, 3))
        model = library.KAN([4, 5, 3])
        for i, (width_in, width_out) in enumerate(sizes):
            model.layers[i] = library.KANLinear(width_in, width_out, **kwargs)
        return model

    return build


def _fast(
    get: Callable[[], Any], *, use_layernorm: bool = True, **kwargs: Any
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = get()
        model = library.FastKAN([4, 5, 3])
        for i, (width_in, width_out) in enumerate(((4, 5), (5, 3))):
            model.layers[i] = library.FastKANLayer(
                width_in, width_out, use_layernorm=use_layernorm, **kwargs
            )
        return model

    return build


def _pykan(**kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from kan import KAN

        return KAN([4, 5, 3], grid=5, k=3, auto_save=False, seed=torch.initial_seed(), **kwargs)

    return build


FAMILIES = [
    importlib.import_module(f"tests.{file.stem}")
    for file in sorted(Path(__file__).parent.glob("rows_*.py"))
]
"""Modules with rows of further libraries."""


class TapConv(nn.Module):
    """A private convolutional layer, polynomial in the input: sum_k (w_k * x^(k+1))."""

    def __init__(self, channels_in: int, channels_out: int, degree: int = 3) -> None:
        super().__init__()
        self.degree = degree
        self.poly = nn.Parameter(torch.randn(channels_out, channels_in * degree, 3, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        powers = torch.stack([x ** (k + 1) for k in range(self.degree)], dim=2).flatten(1, 2)
        return nn.functional.conv2d(powers, self.poly, padding=1)


TAP_CONV = kanmeta.Adapter(
    name="tap-conv",
    class_names=("TapConv",),
    slots=(kanmeta.Slot("poly", "o (i k) kh kw"),),
    edges="o i kh kw",
    sizes=lambda layer: {"k": layer.degree},
)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(TapConv(2, 3), TapConv(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


_EFFICIENT = {
    "scaler": {},
    "no-scaler": {"enable_standalone_scale_spline": False},
    "k2-G3": {"spline_order": 2, "grid_size": 3, "enable_standalone_scale_spline": False},
}
_FAST: dict[str, dict[str, Any]] = {
    "base-norm": {},
    "no-base": {"use_base_update": False},
    "no-norm": {"use_layernorm": False, "num_grids": 5},
}
_NO_NORM = {"use_layernorm": False}


def _family(prefix: str, efficient: Callable[[], Any], fast: Callable[[], Any]) -> list[Case]:
    rows = [
        Case(f"{prefix}efficient-kan-{n}", _efficient(efficient, **kw), "efficient-kan", dim_w)
        for (n, kw), dim_w in zip(_EFFICIENT.items(), (9, 9, 6), strict=True)
    ]
    return rows + [
        Case(f"{prefix}fast-kan-{n}", _fast(fast, **kw), "fast-kan", dim_w, layer_kwargs=_NO_NORM)
        for (n, kw), dim_w in zip(_FAST.items(), (9, 8, 6), strict=True)
    ]


CASES = [
    *_family("", lambda: efficient_kan, lambda: fast_kan),
    *_family("upstream-", upstream.efficient_kan, upstream.fast_kan),
    Case("efficient-kan-bias", _efficient(lambda: efficient_kan, bias=True), "efficient-kan", 9),
    Case(
        "fast-kan-no-base-bias",
        _fast(lambda: fast_kan, base_bias=False),
        "fast-kan",
        9,
        layer_kwargs=_NO_NORM,
    ),
    Case(
        "pykan",
        _pykan(),
        "pykan",
        9,
        layers=("act_fun.0", "act_fun.1"),
        output=lambda y: y[0] if isinstance(y, tuple) else y,
        pickles=False,  # its symbolic layers hold lambdas
    ),
    Case(
        "pykan-frozen-base",
        _pykan(sb_trainable=False, sp_trainable=False),
        "pykan",
        8,
        layers=("act_fun.0", "act_fun.1"),
        output=lambda y: y[0] if isinstance(y, tuple) else y,
        pickles=False,
    ),
    Case("private-conv-tap", ConvNet, "tap-conv", 3, adapters=(TAP_CONV,), in_shape=(2, 4, 4)),
    Case(
        "private-conv-pair",
        ConvNet,
        "tap-conv",
        27,
        adapters=(TAP_CONV,),
        in_shape=(2, 4, 4),
        edge="pair",
    ),
    *(row for family in FAMILIES for row in family.ROWS),
]
if packages.CHOSEN:  # this process is about one package; another library may have its name
    CASES = importlib.import_module("tests.rows_packages").ROWS


EXAMPLE = "fast-kan-base-norm"
"""The row that tests of one model use."""


def case(name: str) -> Case:
    return next(c for c in CASES if c.name == name)


def kan(*sizes: int) -> nn.Module:
    return efficient_kan.KAN(list(sizes), enable_standalone_scale_spline=False)


def linear(i: int, o: int) -> efficient_kan.KANLinear:
    return efficient_kan.KANLinear(i, o, enable_standalone_scale_spline=False)


def same_state(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether names, order and values of a model's state_dict are those of ``state``."""
    now = model.state_dict()
    return list(now) == list(state) and all(torch.equal(now[k], v) for k, v in state.items())


def saved(tmp_path: Path, c: Case | None = None, **kwargs: object) -> tuple[nn.Module, Path]:
    c = c or case(EXAMPLE)
    model = c.convert(c.model(torch.float32), **kwargs)
    with torch.no_grad():  # not what a seed would give
        for p in model.parameters():
            if p.is_floating_point():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(8)) * 0.01)
    path = tmp_path / "model.safetensors"
    kanmeta.save(model, path)
    return model, path


each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
