"""Every public function has an example that runs, every error class a test that raises it."""

import builtins
import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest
import torch
from torch import nn

import kanmeta
from kanmeta import errors, plot
from kanmeta.recognition import describe
from kanmeta.registry import all_adapters
from recipes.reference.efficient_kan import KAN

FUNCTIONS = [
    value
    for module in (kanmeta, plot)
    for name in module.__all__
    if isinstance(value := getattr(module, name), FunctionType)
]


def _finder(function: object) -> list[doctest.DocTest]:
    globs = {"kanmeta": kanmeta, "torch": torch, "KAN": KAN}  # of any supported library
    return doctest.DocTestFinder(recurse=False).find(function, "example", globs=globs)


@pytest.mark.parametrize("function", [*FUNCTIONS, kanmeta], ids=lambda f: f.__name__)
def test_the_example_of_a_public_function_runs(
    function: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = importlib.import_module("kanmeta.registry")
    monkeypatch.setattr(registry, "_registered", {})
    target = inspect.unwrap(function) if callable(function) else function
    (test,) = _finder(target)
    assert test.examples, "no example"
    if function is not kanmeta.fully_shard:  # needs a process group: tests/test_fsdp.py
        assert not [e for e in test.examples if doctest.SKIP in e.options], "one is skipped"
    failures: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        result = doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert result.failed == 0, "".join(failures)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_docstring_of_a_public_function_says_what_goes_in_and_what_is_raised(
    function: FunctionType,
) -> None:
    text = inspect.getdoc(function) or ""
    first = text.partition("\n")[0]
    assert first.endswith("."), "the first line is no sentence"
    lacking = [p for p in inspect.signature(function).parameters if f"{p}" not in text]
    elsewhere = "see :func:`convert`" in text
    assert lacking == [] or elsewhere, f"arguments not described: {lacking}"
    named = re.findall(r"^    (\w+(?:Error|Warning)): ", text.partition("Raises:")[2], re.MULTILINE)
    assert named or elsewhere, "it does not say what is raised"
    known = {*errors.__all__, *dir(builtins)}
    assert {*named} <= known, "it names an error that is none"


def test_a_layer_that_its_library_broke() -> None:
    adapters = {adapter.name: adapter for adapter in all_adapters()}
    layer = nn.Module()
    layer.register_parameter("weight", nn.Parameter(torch.ones(2, 3)))
    layer.basis_function = torch.sin
    with pytest.raises(errors.BrokenLayerError, match="one number an edge already"):
        describe(adapters["single-kan"], layer, "tap")


def test_every_error_is_expected_by_a_test() -> None:
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    named = {
        name
        for text in texts
        # pytest.raises(PlanError), and errors.PlanError as an argument of a test
        for name in re.findall(
            r"(?:(?:raises|warns)\([^)]*?|errors\.)(\w+(?:Error|Warning))\b", text
        )
    }
    base = {"KanMetaError", "CheckpointError"}  # caught by users; what is raised derives from it
    assert {*errors.__all__} - named - base == set()
