"""All messages of the library that say what to do: a test follows each of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HERE = ("test_advice.py", "test_advice_cli.py")
VERBS = re.compile(
    r"(?<!to )(?<!a )(?<!cannot )\b("
    r"add_param_group|build|call|change|choose|convert|copy or|did you mean|draw|fix|give|inspect"
    r"|install|leave|load files|load or|make it|make a new|name (each|every)|need a function|pass"
    r"|pip|put them|remove|rename|run it|say which|scale and|see|shard with|store|train the|upgrade"
    r"|use|write|torch\.nn|--[a-z]+)\b",
    re.IGNORECASE,
)
"""What advice begins with."""

ELSEWHERE = {
    "Install the project (pip install -e .)": "test_packaging.py",
    "give another place": "fault_scripts.py",
    "or --force to replace it": "test_cli_errors.py",
    "make it first": "test_cli_errors.py",
    "pip install click rich": "test_cli_errors.py",
    "pip install matplotlib": "test_plot.py",
    "training has diverged. Draw a model saved before": "test_plot.py",
    "Draw a model saved before, or the other layers": "test_plot.py",
    "give it memory of its own first": "test_checkpoint_faults.py",
    "make a new optimiser afterwards": "test_optimizer.py",
    "give those that no other optimiser trains to another one": "test_optimizer.py",
    "Call the whole model, whose forward gathers them": "test_fsdp.py",
    "Shard with kanmeta.fully_shard(model, parts) instead": "test_fsdp.py",
    "expected some of its layers or blocks, such as": "test_fsdp.py",
    "Convert the module": "test_refusals.py",
    "Convert a model on which": "test_refusals.py",
    "Convert the model before it is sharded": "test_refusals.py",
    "Convert the Python module it was made from": "test_refusals.py",
    "pass adapters=[kanmeta.adapter_for(": "test_recognition.py",
    "For a layer class of your own, pass": "test_recognition.py",
    "pass more of them, such that differ": "test_methods.py",
    "kanmeta.materialize(model) first.": "own_packages.py",
    "before the forward pass, or ask for one gradient at a time": "test_execution_transforms.py",
    'the only text is "normal"; else pass inputs, or None': "test_distill.py",
}
NOT_TO_BE_FOLLOWED_HERE = {
    "Upgrade: pip install -U kanmeta": "there is no newer version that could be installed",
    "Fix or uninstall the package that offers it": "a package of somebody else's",
}
"""And why."""


def _texts(node: ast.AST) -> str:
    parts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return "".join(part for part in parts if isinstance(part, str))


def _messages() -> Iterator[tuple[str, str]]:
    """Where, and all literal text of each error, warning and refusal."""
    for path in sorted([*(ROOT / "kanmeta").rglob("*.py"), *(ROOT / "adapters").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            call = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("warnings.warn", "sys.exit")
            )
            if call or isinstance(node, ast.Raise):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", _texts(node)
            elif isinstance(node, ast.FunctionDef) and node.name in {"refusal", "_tied"}:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", _texts(node.body[-1])


def _followed() -> set[str]:
    """Parts of messages that tests expect before they follow them."""
    return {
        text.value
        for name in HERE
        for node in ast.walk(ast.parse((ROOT / "tests" / name).read_text()))
        for text in ast.walk(node)
        if isinstance(text, ast.Constant) and isinstance(text.value, str) and len(text.value) > 11
    }


MESSAGES = dict(_messages())
KNOWN = {*_followed(), *ELSEWHERE, *NOT_TO_BE_FOLLOWED_HERE}


@pytest.mark.parametrize("place", [p for p, text in MESSAGES.items() if VERBS.search(text)])
def test_no_advice_is_left_out(place: str) -> None:
    text = MESSAGES[place]
    assert any(part in text for part in KNOWN), f"nothing follows the advice of {text!r}"


@pytest.mark.parametrize("name", sorted({*HERE, *ELSEWHERE.values()}))
def test_the_tests_are_there(name: str) -> None:
    assert (ROOT / "tests" / name).is_file()


@pytest.mark.parametrize("part", [*ELSEWHERE, *NOT_TO_BE_FOLLOWED_HERE])
def test_the_library_says_so(part: str) -> None:
    sources = [*(ROOT / "kanmeta").rglob("*.py"), *(ROOT / "adapters").glob("*.py")]
    every = {_texts(ast.parse(path.read_text())) for path in sources}
    assert any(part in text for text in every)


def test_messages_are_found() -> None:
    assert sum(VERBS.search(text) is not None for text in MESSAGES.values()) > 50
    assert not VERBS.search("dim_z=0: expected a positive integer")
