"""Libraries under the names that documentation imports them by: real where at hand, else ours.

With ``KANMETA_UPSTREAM`` (see ``tests/upstream.py``) examples run on the real libraries.
"""

import sys
from types import ModuleType

import pytest

from recipes.reference import conv_kan, efficient_kan, fast_kan, wav_kan
from tests import upstream


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``efficient_kan``, ``fastkan``, ``KAN`` and ``kan_convs`` importable for a test."""
    modules: dict[str, ModuleType] = {
        "efficient_kan": efficient_kan,
        "fastkan": fast_kan,
        "KAN": wav_kan,
        "kan_convs": conv_kan,
    }
    if upstream.AVAILABLE:
        modules = {
            "efficient_kan": upstream.efficient_kan(),
            "fastkan": upstream.fast_kan(),
            "KAN": upstream.wav_kan(),
            "kan_convs": upstream.torch_conv_kan("kan_convs"),
        }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
