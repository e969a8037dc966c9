"""The real libraries that the package index does not have, from local checkouts.

``KANMETA_UPSTREAM`` names a folder with checkouts of

* ``efficient-kan/`` (github.com/Blealtan/efficient-kan), ``fast-kan/``
  (github.com/ZiyaoLi/fast-kan) and ``Wav-KAN/`` (github.com/zavareh1/Wav-KAN): single files,
  imported under private names and never through ``sys.path``, because their names clash. Wav-KAN
  needs torchvision and tqdm;
* ``torch-conv-kan/`` (github.com/IvanDrokin/torch-conv-kan): packages that import each other by
  their top-level names. ``models`` needs timm and huggingface_hub, ``utils`` pillow and matplotlib,
  and ``train`` accelerate, wandb and more.
"""

import os
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from recipes import library
from recipes.checkouts import import_file

FOLDER = os.environ.get("KANMETA_UPSTREAM")
AVAILABLE = bool(FOLDER)
HOW = (
    "NOT COMPARED WITH THE REAL LIBRARY: set KANMETA_UPSTREAM to a folder with checkouts of "
    "efficient-kan, fast-kan, Wav-KAN and torch-conv-kan"
)


def efficient_kan() -> ModuleType:
    """Import the real one; skips the calling test where it is not at hand."""
    return _module("efficient-kan/src/efficient_kan/kan.py")


def fast_kan() -> ModuleType:
    """Import the real one; skips the calling test where it is not at hand."""
    return _module("fast-kan/fastkan/fastkan.py")


def wav_kan() -> ModuleType:
    """Import the real one; skips the calling test where it is not at hand."""
    return _module("Wav-KAN/KAN.py")


@cache
def torch_conv_kan(module: str) -> ModuleType:
    """Import a module of torch-conv-kan by its own name, e.g. ``"kan_convs"`` or ``"kans.layers"``.

    The checkout is on ``sys.path`` only while this runs; the modules stay where pickle and each
    other find them. Skips the calling test where the checkout is not at hand.
    """
    return library.torch_conv_kan(_existing("torch-conv-kan"), module)


def _module(file: str) -> ModuleType:
    module: ModuleType = import_file(_existing(file))
    return module


def _existing(part: str) -> Path:
    if not AVAILABLE:
        pytest.skip(HOW)
    path = Path(str(FOLDER)).absolute() / part
    if not path.exists():  # asked for and not there: not a reason to skip
        pytest.fail(f"KANMETA_UPSTREAM={FOLDER}, but there is no {path}")
    return path
