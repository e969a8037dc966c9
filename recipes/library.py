"""The models of the recipes made of the real libraries' layers, from checkouts on this machine.

A folder has checkouts called efficient-kan, fast-kan, Wav-KAN and torch-conv-kan. None of their
code is here.
"""

import importlib
import itertools
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from recipes.checkouts import import_file
from recipes.reference.conv_net import conv_net

__all__ = ["FOLDER", "constructors", "torch_conv_kan"]

FOLDER = "KANMETA_UPSTREAM"
"""Environment variable that ``--library`` sets: processes that a recipe starts have it as well."""

_FILES = {
    "fastkan": ("fast-kan/fastkan/fastkan.py", "FastKAN"),
    "wavkan": ("Wav-KAN/KAN.py", "KAN"),
}
_CONVOLUTIONS = ("KANConv", "FastKANConv", "KALNConv", "KAGNConv")
# What only the reference layers can leave out or add.
_OURS = frozenset({"bias", "base_bias", "unused_weight"})


def constructors(folder: Path) -> dict[str, Callable[..., nn.Module]]:
    """Constructors as in :data:`recipes.models.BASES`; checkouts are read when they are called.

    They leave out options that the libraries do not have: biases of nodes and of base branches,
    and that an unused tensor should not exist.
    """
    files = {base: partial(_stack, folder / file, name) for base, (file, name) in _FILES.items()}
    convolutions = {kind: partial(_convolutions, folder, kind) for kind in _CONVOLUTIONS}
    splines = partial(_splines, folder / "efficient-kan/src/efficient_kan/kan.py")
    return {"kan": splines, **files, **convolutions}


def _splines(file: Path, widths: tuple[int, ...], **options: Any) -> nn.Module:
    # The library's KAN does not pass on every option of its layers.
    module, options = import_file(file), {n: o for n, o in options.items() if n not in _OURS}
    model: nn.Module = module.KAN(list(widths))
    model.layers = nn.ModuleList(
        module.KANLinear(*pair, **options) for pair in itertools.pairwise(widths)
    )
    return model


def _stack(file: Path, name: str, widths: tuple[int, ...], **options: Any) -> nn.Module:
    make = getattr(import_file(file), name)
    model: nn.Module = make(list(widths), **{n: o for n, o in options.items() if n not in _OURS})
    return model


def _convolutions(
    folder: Path, kind: str, widths: tuple[int, int], depth: int, **options: Any
) -> nn.Module:
    layer = getattr(torch_conv_kan(folder / "torch-conv-kan", "kan_convs"), f"{kind}2DLayer")
    return conv_net(layer, widths, depth, **options)


def torch_conv_kan(folder: Path, module: str) -> ModuleType:
    """Import ``module`` of a checkout of torch-conv-kan by its own name, ``"kan_convs"``.

    The checkout is on ``sys.path`` only while this runs; the modules stay where pickle and each
    other find them.

    Raises:
        ImportError: a module of that name is there already, from elsewhere.
    """
    folder = folder.resolve()
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports what timm has moved
            found = importlib.import_module(module)
    finally:
        sys.path.remove(str(folder))
    if folder not in Path(str(found.__file__)).parents:  # "utils" and "models" are common names
        raise ImportError(f"{module!r} was already imported from {found.__file__}, not {folder}")
    return found
