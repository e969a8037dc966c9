"""Parts of pages that are made from result files, between two markers."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from recipes.records import REPOSITORY
from recipes.results import Result, load

__all__ = ["refresh_section", "replace_section"]


def replace_section(text: str, name: str, content: str) -> str:
    """Put ``content`` between the markers of section ``name``.

    Raises:
        ValueError: ``text`` does not have both markers once, in this order.
    """
    start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not opened or not closed or start in after or end in after:
        raise ValueError(f"expected {start} and then {end}, once each")
    return f"{before}{start}\n{content}\n{end}{after}"


def refresh_section(
    argv: Sequence[str] | None,
    module: str,
    description: str | None,
    page: str,
    name: str,
    table: Callable[[Sequence[Result]], str],
) -> None:
    """Command line of a module that keeps one section of a page of docs/ true.

    Args:
        argv: its arguments.
        module, description: of its help.
        page, name: where its section is.
        table: what belongs there, from the files in results/distill.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    parser.add_argument("--page", type=Path, default=REPOSITORY / "docs" / page)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results" / "distill")
    args = parser.parse_args(argv)
    old = args.page.read_text()
    text = replace_section(old, name, table(load(args.results)))
    if args.check and text != old:
        raise SystemExit(f"{args.page} is stale: run python -m {module}")
    if not args.check:
        args.page.write_text(text)
