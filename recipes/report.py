"""Every table of the paper beside what was run here, from the result files.

python -m recipes.report           # README.md, results/README.md and runs/report.html
python -m recipes.report --check   # exit status 1 if the two are not what the files give
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from recipes.readme_tables import collapse_table, headline_table
from recipes.records import REPOSITORY
from recipes.report_page import html_page, markdown_page
from recipes.results import load
from recipes.section import replace_section

__all__ = ["RECIPES", "main"]

RECIPES = ("functions", "images_conv", "images_fc", "pde", "pde_second_order", "symbolic", "vit")
"""Those whose results the pages show; the last two are no cells of the paper's tables."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results")
    parser.add_argument("--html", type=Path, default=REPOSITORY / "runs" / "report.html")
    args = parser.parse_args(argv)
    results = [result for recipe in RECIPES for result in load(args.results / recipe)]
    images = [r for r in results if r["job"]["recipe"] == "images_fc"]
    text = args.readme.read_text()
    text = replace_section(text, "headline", headline_table(images))
    text = replace_section(text, "collapse", collapse_table(images))
    pages = {args.readme: text, args.results / "README.md": markdown_page(results)}
    for path, page in pages.items():
        same = path.exists() and path.read_text() == page
        if args.check and not same:
            raise SystemExit(f"{path} is stale: run python -m recipes.report")
        if not args.check:
            path.write_text(page)
            print(f"{path}: {'no change' if same else 'updated'}")
    if not args.check:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        drawings = sorted((args.html.parent / "figures").glob("*.svg"))
        args.html.write_text(html_page(results, [path.read_text() for path in drawings]))
        print(f"{args.html}: written")


if __name__ == "__main__":
    main()
