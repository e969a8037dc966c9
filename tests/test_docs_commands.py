"""Every line of a shell block in the documentation names what there is: modules, options, jobs."""

import argparse
import importlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
]
TESTED_ELSEWHERE = (
    "kanmeta ",  # tests/test_ten_minutes.py
    'eval "$(_KANMETA_COMPLETE=',  # tests/test_cli_errors.py
    "python3 -m venv .venv && . .venv/bin/activate",
    "python digits.py",  # tests/test_ten_minutes.py
    ".venv/bin/pre-commit install",
)


def _lines() -> list[str]:
    found = [
        line.partition("  #")[0].strip()
        for page in PAGES
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for line in block.splitlines()
    ]
    return [*dict.fromkeys(line for line in found if not line.startswith(TESTED_ELSEWHERE))]


class ParsedError(Exception):
    """The command line was understood; nothing else is to happen."""


def recipe(
    name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The arguments are understood, and ``--only`` selects jobs."""
    main = importlib.import_module(name).main
    if "--only" in arguments and "--figure" not in arguments:
        main([*arguments, "--list"])
        assert capsys.readouterr().out.strip()
        return
    understood = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Sequence[str] | None = None) -> None:
        understood(self, args)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(ParsedError):
        main(arguments)


@pytest.mark.parametrize("line", _lines())
def test_a_shell_line_names_what_there_is(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    program, rest = Path(words[0]).name, words[1:]
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        extras = re.findall(r"\[(.*)\]", line)
        written = (ROOT / "pyproject.toml").read_text()
        assert rest[0] == "install"
        assert all(f"\n{extra} = [" in written for e in extras for extra in e.split(","))
    elif rest[:2] == ["-m", "pytest"]:
        tests = (ROOT / rest[2]).read_text()
        assert re.search(rf"def test_\w*{rest[rest.index('-k') + 1]}", tests)
    elif rest[:2] == ["-m", "tests.fuzz"]:
        assert len([int(number) for number in rest[2:]]) == 2
    else:
        if words[:2] == ["accelerate", "launch"]:
            rest = rest[1:]
        assert rest[0] == "-m"
        assert rest[1].startswith("recipes.")
        recipe(rest[1], rest[2:], monkeypatch, capsys)


def test_an_unknown_option_and_a_pattern_without_jobs_are_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for arguments in (["--only", "nothing-*"], ["--profiles", "full"]):
        with pytest.raises(SystemExit):
            recipe("recipes.functions", arguments, monkeypatch, capsys)
