"""KAN packages of the package index, each in a folder of its own; see packages.txt.

``make test`` installs them into ``<environment>/packages``; ``KANMETA_PACKAGES`` names another
folder. Some of their top-level names clash, so a process imports one of them at most:
``KANMETA_PACKAGE`` says which. ``test_packages.py`` starts these processes.
"""

import importlib
import os
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

FOLDER = Path(os.environ.get("KANMETA_PACKAGES", Path(sys.prefix) / "packages"))
CHOSEN = os.environ.get("KANMETA_PACKAGE", "")
NAMES = tuple(
    line.partition("==")[0]
    for line in (Path(__file__).parent / "packages.txt").read_text().splitlines()
    if not line.startswith("#")
)


@cache
def load(module: str) -> ModuleType:
    """Import a module of the chosen package, which is on ``sys.path`` only meanwhile.

    One package brings a top-level ``tests`` that would hide ours.
    """
    folder = FOLDER / CHOSEN
    if module == "kanx.torch":  # kanx itself imports TensorFlow, its PyTorch half does not
        parent = ModuleType("kanx")
        parent.__path__ = [str(folder / "kanx")]
        sys.modules["kanx"] = parent
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(module)
    finally:
        sys.path.remove(str(folder))
    assert folder in Path(str(found.__file__)).parents, f"{module} came from {found.__file__}"
    return found
