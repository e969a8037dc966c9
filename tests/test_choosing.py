"""The table of docs/choosing.md is what the result files give."""

from pathlib import Path

import pytest

from recipes import choosing


def test_the_page_is_up_to_date() -> None:
    choosing.main(["--check"])


def test_a_stale_page_is_found_and_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- results:files -->\nold\n<!-- /results:files -->\n")
    with pytest.raises(SystemExit, match="is stale"):
        choosing.main(["--check", "--page", str(page)])
    choosing.main(["--page", str(page)])
    assert "| teacher |" in page.read_text()
    choosing.main(["--check", "--page", str(page)])


def test_rows_are_means_over_seeds_and_prefer_trained_codebooks() -> None:
    def result(size: int, accuracy: float, **tuned: float) -> dict[str, object]:
        file = {"bits": 4, "bytes": size, "test_accuracy": accuracy, **tuned}
        teacher = {"bytes": 9000, "test_accuracy": 90.0}
        common = {"kind": "distilled", "dim_z": 1, "data_used": "some", "teacher": teacher}
        return common | {"files": [file], "dataset": "fashion-mnist"}

    plain = choosing.table([result(1000, 80.0), result(1200, 82.0)])
    assert "| teacher |  |  | 32 | 9,000 | 90.00 | 1 |" in plain
    assert "| distilled | 1 | some | 4 | 1,100 | 81.00 | 2 |" in plain
    tuned = choosing.table([result(1000, 80.0, tuned_bytes=900, tuned_accuracy=85.0)])
    assert "| distilled | 1 | some | 4 | 900 | 85.00 | 1 |" in tuned
    other = result(5, 1.0) | {"dataset": "mnist"}
    assert choosing.table([result(1000, 80.0), other]) == choosing.table([result(1000, 80.0)])
