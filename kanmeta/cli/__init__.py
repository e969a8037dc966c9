"""The command ``kanmeta``; needs the extra ``cli`` (click and rich)."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; the exit code is 0, 1 (an error with a message) or 2 (usage)."""
    try:
        from kanmeta.cli.app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("click", "rich"):
            raise
        sys.exit(
            f"kanmeta's command line needs {missing}, which is not installed: "
            "pip install click rich (kanmeta's extra 'cli' names them). The library works without."
        )
    app(prog_name="kanmeta")
