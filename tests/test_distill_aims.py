"""The aims of docs/distilling.md beside what the result files give."""

from pathlib import Path

import pytest

from recipes import distill_aims
from recipes.distill_aims import AIMS, table
from recipes.records import REPOSITORY

PAGE = REPOSITORY / "docs" / "distilling.md"
FILES = [
    {"bits": 8, "bytes": 1000, "test_accuracy": 89.0},
    {"bits": 4.4, "tuned_bytes": 1400, "tuned_accuracy": 88.5},
    {"bits": 4, "bytes": 1300, "test_accuracy": 80.0, "tuned_bytes": 1250, "tuned_accuracy": 88.9},
]
RESULT = {
    "dataset": "fashion-mnist",
    "kind": "from scratch",
    "dim_z": 1,
    "seed": 0,
    "teacher": {"test_accuracy": 88.0, "bytes": 100_000},
    "test_accuracy": 89.0,
    "files": FILES,
}


def test_the_page_is_what_the_files_give(tmp_path: Path) -> None:
    distill_aims.main(["--check"])
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text().replace("| G = 5, 90 times", "| G = 6, 90 times"))
    with pytest.raises(SystemExit, match="stale"):
        distill_aims.main(["--check", "--page", str(page)])
    distill_aims.main(["--page", str(page)])
    assert page.read_text() == PAGE.read_text()


def test_of_files_the_largest_that_is_small_enough_counts() -> None:
    """Whatever its accuracy, and tuned where it was: no choice by the test set."""
    (seventy,) = (a for a in AIMS if a.smaller == 70 and a.where.get("grid") == 5)
    assert seventy.reached(RESULT) == (pytest.approx(0.5), pytest.approx(100 / 1.4))
    assert seventy.reached(RESULT | {"files": FILES[2:]}) == (pytest.approx(0.1), 80.0)
    assert seventy.reached(RESULT | {"files": []}) == (None, None)
    assert seventy.reached(RESULT | {"dataset": "mnist"}) is None
    assert seventy.reached(RESULT | {"grid": 10}) is None
    assert seventy.reached(RESULT | {"network": "KANConv x 4"}) is None


def test_a_seed_beyond_its_aim_is_a_miss() -> None:
    distilled = {**RESULT, "kind": "distilled", "data_used": "100 batches", "files": []}
    found = [distilled | {"seed": s, "test_accuracy": 88.0 - 0.9 * s} for s in (1, 0, 2)]
    (row,) = (line for line in table(found).splitlines() if "100 batches, `dim_z=1`" in line)
    assert "| 0: 0.00, 1: 0.90, 2: 1.80 | 0.90 | **missed** by 1 of 3 |" in row
    (other,) = (line for line in table(found).splitlines() if "100 batches, `dim_z=2`" in line)
    assert "not run" in other


def test_a_seed_without_a_small_file_is_a_miss() -> None:
    found = [RESULT, RESULT | {"seed": 1, "files": FILES[1:2]}]
    (row,) = (line for line in table(found).splitlines() if "90 times" in line)
    assert "| 0: 0.00 at 100.0x, 1: no file is small enough | 0.00 | **missed** by 1 of 2 |" in row
