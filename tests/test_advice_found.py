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
    "Install the project (pip install -e .)": "test_packaging.py::test_importing_adapters_under_"
    "another_name_says_which_is_right",
    "give another place": "fault_scripts.py::read_only",
    "or --force to replace it": "test_cli_errors.py::test_files_are_only_replaced_by_force",
    "make it first": "test_cli_errors.py::test_data_that_cannot_be_inputs",
    "pip install click rich": "test_cli_errors.py::test_without_the_extra_the_command_says_what_to_"
    "install",
    "pip install matplotlib": "test_plot.py::test_without_matplotlib_the_import_says_what_to_"
    "install",
    "training has diverged. Draw a model saved before": "test_plot.py::test_models_that_have_"
    "diverged_are_not_drawn",
    "or the other layers with layers=": "test_plot.py::test_models_that_have_diverged_are_not_"
    "drawn",
    "give it memory of its own first": "test_checkpoint_faults.py::"
    "test_an_expanded_tensor_of_the_model_leaves_it_as_it_was",
    "make a new optimiser afterwards": "test_optimizer.py::test_optimisers_that_cannot_follow_are_"
    "refused_before_anything_happens",
    "to another one: other.add_param_group": "test_optimizer.py::test_muon_trains_on_what_it_can_"
    "and_says_what_another_optimiser_has_to_train",
    "Call the whole model, whose forward gathers them": "test_fsdp.py::what_cannot_work_says_so",
    "Shard with kanmeta.fully_shard(model, parts)": "test_fsdp.py::what_cannot_work_says_so",
    "some of its layers or blocks, such as [*model.layers]": "test_fsdp.py::test_parts_that_are_"
    "none",
    "Convert the module": "test_refusals.py::test_wrapped_models_are_refused_and_the_advice_helps",
    "Convert a model on which .compile() was not called": "test_refusals.py::test_compiled_in_"
    "place_and_scripted_are_refused",
    "Convert the model before it is sharded": "test_fsdp.py::what_cannot_work_says_so",
    "Convert the Python module it was made from": "test_refusals.py::test_compiled_in_place_and_"
    "scripted_are_refused",
    "adapters=[kanmeta.adapter_for(": "test_recognition.py::test_a_renamed_copy_is_not_converted_"
    "but_suggested",
    "For a layer class of your own, pass": "test_recognition.py::test_a_layer_of_nobody_is_"
    "converted_by_an_adapter_of_its_own",
    "pass more of them, such that differ": "test_methods.py::test_a_grid_update_that_fails_"
    "changes_nothing",
    "kanmeta.materialize(model) first.": "own_packages.py::test_kanx_prune_is_refused_and_its_"
    "advice_works",
    "before the forward pass, or ask for one gradient at a time": "test_execution_transforms.py::"
    "test_many_second_derivatives_at_once_say_what_to_do",
    'the only text is "normal"': "test_distill_data.py::test_data_that_does_not_fit_is_refused",
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


def _expected(place: str) -> set[str]:
    """Pieces of text in ``file.py::function``, without the signs of regular expressions."""
    name, _, function = place.partition("::")
    module = ast.parse((ROOT / "tests" / name).read_text())
    (node,) = (n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == function)
    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return {
        re.sub(r"\\(.)", r"\1", piece)
        for text in texts
        if isinstance(text, str)
        for piece in text.split(".*")
    }


@pytest.mark.parametrize("part", ELSEWHERE)
def test_a_test_elsewhere_expects_the_advice(part: str) -> None:
    pieces = [piece for piece in _expected(ELSEWHERE[part]) if len(piece) > 11]
    assert any(piece in part or part in piece for piece in pieces), ELSEWHERE[part]


@pytest.mark.parametrize("part", [*ELSEWHERE, *NOT_TO_BE_FOLLOWED_HERE])
def test_the_library_says_so(part: str) -> None:
    sources = [*(ROOT / "kanmeta").rglob("*.py"), *(ROOT / "adapters").glob("*.py")]
    every = {_texts(ast.parse(path.read_text())) for path in sources}
    assert any(part in text for text in every)


def test_messages_are_found() -> None:
    assert sum(VERBS.search(text) is not None for text in MESSAGES.values()) > 50
    assert not VERBS.search("dim_z=0: expected a positive integer")
