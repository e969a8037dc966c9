"""The measured table of docs/choosing.md from the result files of :mod:`recipes.distill_images`.

python -m recipes.choosing           # rewrites the table between the markers
python -m recipes.choosing --check   # exit status 1 if it is not what the result files give
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recipes.readme_tables import markdown
from recipes.section import refresh_section

__all__ = ["main", "table"]

HEADER = ("model", "numbers an edge", "data", "bits", "bytes", "test accuracy, %", "runs")


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """Bytes and accuracy of files, means over seeds; with codebooks trained where they were."""
    teachers: list[Mapping[str, Any]] = []
    files: dict[tuple[str, int, str, float], list[tuple[int, float]]] = defaultdict(list)
    for result in results:
        other = result.get("grid", 5) != 5 or "network" in result
        if other or result["dataset"] != "fashion-mnist":
            continue  # no means of different networks or data
        teachers.append(result["teacher"])
        for file in result["files"]:
            key = (result["kind"], result["dim_z"], result["data_used"], -file["bits"])
            tuned = "tuned_bytes" in file
            size = file["tuned_bytes" if tuned else "bytes"]
            reached = file["tuned_accuracy" if tuned else "test_accuracy"]
            files[key].append((size, reached))
    plain = {(t["bytes"], t["test_accuracy"]) for t in teachers}  # one of a seed teaches many
    rows = [("teacher", "", "", "32", *_means([*plain]))]
    rows += [
        (kind, str(dim_z), data, f"{-bits:g}", *_means(found))
        for (kind, dim_z, data, bits), found in sorted(files.items())
    ]
    return markdown(HEADER, rows)


def _means(found: Sequence[tuple[int, float]]) -> tuple[str, str, str]:
    size, reached = (statistics.fmean(column) for column in zip(*found, strict=True))
    return f"{size:,.0f}", f"{reached:.2f}", str(len(found))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    refresh_section(argv, "recipes.choosing", __doc__, "choosing.md", "files", table)


if __name__ == "__main__":
    main()
