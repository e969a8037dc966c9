"""What a command says: one record as tables or as JSON, notes, and errors as one paragraph."""

import functools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from kanmeta.cli.targets import CommandError
from kanmeta.errors import (
    KanMetaError,
    LargerModelWarning,
    PlainModelWarning,
    SkippedLayerWarning,
)

__all__ = ["Output", "bytes_text", "check_new", "layers_table", "table", "verb"]

_OURS = (LargerModelWarning, PlainModelWarning, SkippedLayerWarning)


@dataclass(frozen=True)
class Output:
    """Result of a command: plain data for ``--json``, and what people see."""

    record: dict[str, Any]
    shown: Sequence[RenderableType]
    notes: list[str] = field(default_factory=list)


def verb(function: Callable[..., Output]) -> Callable[..., None]:
    """Make a command's function print its Output, and errors as one paragraph with exit code 1.

    Whatever the user's code prints goes to stderr, so that stdout is the result and nothing else.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @functools.wraps(function)
    def run(as_json: bool, **arguments: Any) -> None:
        try:
            with redirect_stdout(sys.stderr), _warnings() as notes:
                output = function(**arguments)
        except (KanMetaError, OSError) as error:
            kind, text = type(error).__name__, _text(error)
            if as_json:
                click.echo(json.dumps({"error": kind, "message": text}))
            else:
                click.echo(f"error: {text}", err=True)
            sys.exit(1)
        notes = [*output.notes, *notes]
        if as_json:
            click.echo(json.dumps(output.record | {"notes": notes}, indent=1))
            return
        console = Console(file=sys.stdout, highlight=False)
        for item in output.shown:
            console.print(item, soft_wrap=False)
        for note in notes:
            click.echo(f"note: {note}", err=True)

    return run


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # without its number
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect our warnings, each once; others go where they would have gone."""
    notes: list[str] = []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, _OURS):
                shown(message, category, *rest, **more)
            elif str(message) not in notes:
                notes.append(str(message))

        for category in _OURS:
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield notes


def table(*columns: str, rows: Sequence[Sequence[object]]) -> Table:
    """Table for a terminal; columns whose names begin with ``>`` are flush right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        made.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(f"{cell:,}" if type(cell) is int else str(cell) for cell in row))
    return made


def layers_table(
    layers: Sequence[Mapping[str, Any]], columns: Sequence[str], keys: Sequence[str]
) -> Table:
    """Table of layers: name, adapter, edges, dim_w and meta-learner, then ``keys``."""
    return table(
        *("layer", "adapter", ">edges", ">dim_w", ">meta", *columns),
        rows=[
            (
                layer["name"] or "(root)",
                layer["adapter"],
                " x ".join(map(str, layer["edges"])),
                layer["dim_w"],
                f"#{layer['meta_learner']}",
                *(layer[key] for key in keys),
            )
            for layer in layers
        ],
    )


def bytes_text(number: float) -> str:
    """Format a number of bytes for people: 1,234 B, 56.7 kB, 8.9 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e4)):
        if number >= size:
            return f"{number / (1e3 if unit == 'kB' else size):,.1f} {unit}"
    return f"{number:,.0f} B"


def check_new(path: Path, force: bool) -> None:
    """Raise CommandError if ``path`` exists, or could not be written later."""
    if path.exists() and not force:
        raise CommandError(f"{path} exists already; give another name, or --force to replace it")
    if not path.parent.is_dir():
        raise CommandError(f"there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        raise CommandError(f"{path} is not a regular file; give another name")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # permissions alone do not tell
            pass
    except OSError as error:
        raise CommandError(
            f"no file can be made in {path.parent} ({error.strerror}); give another place"
        ) from error
