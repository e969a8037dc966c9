"""Every error and warning class is raised somewhere in the library, and a test waits for it."""

import dataclasses
import re
from pathlib import Path

import pytest

from kanmeta import errors
from kanmeta.recognition import describe
from tests.cases import TAP_CONV, TapConv

ROOT = Path(__file__).parents[1]
BASES = {"KanMetaError", "CheckpointError"}  # CheckpointError is raised for bad arguments, too


def _text(*folders: str) -> str:
    files = [f for folder in folders for f in (ROOT / folder).rglob("*.py")]
    return "\n".join(f.read_text() for f in files)


LIBRARY, TESTS = _text("kanmeta", "adapters"), _text("tests")


@pytest.mark.parametrize("name", sorted({*errors.__all__} - BASES))
def test_the_class_is_raised_and_expected(name: str) -> None:
    raised = rf"raise (errors\.)?{name}\b|warnings\.warn\([^)]*{name}\b"
    assert re.search(raised, LIBRARY, re.DOTALL), f"nothing raises {name}"
    expected = rf"(raises|warns)\(\s*(errors\.)?{name}\b|errors\.{name},"
    assert re.search(expected, TESTS), f"no test waits for {name}"


def test_a_layer_that_its_adapter_calls_broken() -> None:
    adapter = dataclasses.replace(TAP_CONV, broken="its forward gives ones")
    with pytest.raises(errors.BrokenLayerError, match="gives ones"):
        describe(adapter, TapConv(2, 3), "tap")
