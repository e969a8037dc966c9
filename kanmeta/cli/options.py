"""Arguments and options that several commands take, and what they mean for the library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kanmeta.cli.targets import CommandError
from kanmeta.meta import ACTIVATIONS

__all__ = [
    "CONVERSION",
    "FILE",
    "MODEL",
    "STORED",
    "WEIGHTS",
    "plan_arguments",
    "settings_record",
    "with_options",
]

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
CONVERSION = (
    click.option("--dim-z", default=1, show_default=True, help="Numbers in a prompt."),
    click.option("--hidden", default=32, show_default=True, help="Width of the meta-learners."),
    click.option(
        "--activation",
        type=click.Choice([*ACTIVATIONS]),
        default="relu",
        show_default=True,
        help="Of the meta-learners.",
    ),
    click.option(
        "--clusters",
        default="1",
        show_default=True,
        help="Meta-learners per kind of layer, or 'layer' for one a layer.",
    ),
    click.option(
        "--edge",
        type=click.Choice(["tap", "pair"]),
        default="tap",
        show_default=True,
        help="In convolutions a prompt for each tap of the kernel, or for each pair of channels.",
    ),
    click.option("--include", multiple=True, help="Only layers whose names match; repeatable."),
    click.option("--exclude", multiple=True, help="All layers but these; repeatable."),
    click.option("--drop-dead", is_flag=True, help="Take out numbers that have no effect."),
)
MODEL = (
    click.argument("target"),
    click.option("--args", "arguments", help="JSON list or object: arguments of the function."),
)
WEIGHTS = (
    click.option(
        "--weights", type=FILE, help="state_dict to load first: .safetensors, or .pt without code."
    ),
)
STORED = (
    click.option("--seed", default=0, show_default=True, help="Of the model and first values."),
    click.option("--bits", type=int, help="Bits of a prompt's number: 16, 8, 4, 3 or 2."),
    click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"])),
    click.option("--force", is_flag=True, help="Replace OUT if it exists."),
)


def with_options(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """Apply click's decorators in the order in which help is to show them."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def plan_arguments(conversion: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``kanmeta.plan`` and ``convert``."""
    given = conversion["clusters"]
    clusters: int | str = given if given == "layer" else _whole(given)
    filters = {name: list(conversion[name]) or None for name in ("include", "exclude")}
    return conversion | filters | {"clusters": clusters}


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise CommandError(f"--clusters {text!r}: expected a number, or 'layer'")
    return int(text)


def settings_record(conversion: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, as plain data."""
    return {name: value for name, value in conversion.items() if name != "adapters"}
