"""Classes of other people's repositories, imported from checkouts on this machine by path."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

__all__ = ["import_file", "used_files"]

_FILES: dict[Path, str] = {}


def import_file(path: Path) -> Any:
    """Import one file of a checkout under a name of its own, never through ``sys.path``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = path.resolve()
    name = f"_checkout_{hashlib.sha256(bytes(path)).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"there is no {path}; expected a checkout of the repository there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    _FILES[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return module


def used_files() -> dict[str, str]:
    """Fingerprints (SHA-256) of the files imported so far, by file and folder name."""
    return {f"{path.parent.name}/{path.name}": digest for path, digest in sorted(_FILES.items())}
