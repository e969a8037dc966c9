"""The real libraries that the package index does not have, from checkouts.

Set ``KANMETA_UPSTREAM`` to a folder that holds ``efficient-kan/`` and ``fast-kan/``.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

FOLDER = os.environ.get("KANMETA_UPSTREAM")
AVAILABLE = FOLDER is not None
HOW = (
    "set KANMETA_UPSTREAM to a folder with checkouts of efficient-kan and fast-kan to run this "
    "against the real libraries"
)


def _module(name: str, file: str) -> ModuleType:
    """Import one file under a private name: fast-kan ships a changed ``efficient_kan`` package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(str(FOLDER)) / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def efficient_kan() -> ModuleType:
    return _module("upstream_efficient_kan", "efficient-kan/src/efficient_kan/kan.py")


def fast_kan() -> ModuleType:
    return _module("upstream_fast_kan", "fast-kan/fastkan/fastkan.py")
