"""The real libraries that the package index does not have, from local checkouts.

``KANMETA_UPSTREAM`` names a folder with ``efficient-kan/`` (github.com/Blealtan/efficient-kan) and
``fast-kan/`` (github.com/ZiyaoLi/fast-kan). Files are imported one by one under private names and
never through ``sys.path``: fast-kan's checkout has a top-level ``efficient_kan`` of its own.
"""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = os.environ.get("KANMETA_UPSTREAM")
AVAILABLE = bool(FOLDER)
HOW = (
    "NOT COMPARED WITH THE REAL LIBRARY: set KANMETA_UPSTREAM to a folder with checkouts of "
    "efficient-kan and fast-kan"
)


def efficient_kan() -> ModuleType:
    """Import the real one; skips the calling test where it is not at hand."""
    return _module("efficient-kan/src/efficient_kan/kan.py")


def fast_kan() -> ModuleType:
    """Import the real one; skips the calling test where it is not at hand."""
    return _module("fast-kan/fastkan/fastkan.py")


@cache
def _module(file: str) -> ModuleType:
    if not AVAILABLE:
        pytest.skip(HOW)
    path = Path(str(FOLDER)) / file
    if not path.is_file():  # asked for and not there: not a reason to skip
        pytest.fail(f"KANMETA_UPSTREAM={FOLDER}, but there is no {path}")
    name = f"_upstream_{path.parent.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and inspect look classes up there
    spec.loader.exec_module(module)
    return module
