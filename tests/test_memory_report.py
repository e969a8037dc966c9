"""Tables of memory and time: what they say, and that the pages have what the result files give."""

from pathlib import Path
from typing import Any

import pytest

from recipes import memory_report
from recipes.memory_measure import COMPILED, PAPER
from recipes.memory_targets import Target, judge


def row(peak: float, seconds: float) -> dict[str, Any]:
    return {"allocated_bytes": peak, "seconds": seconds, "times": [seconds, 1.2 * seconds]}


def result(**more: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": {"case": "fine-grid", "title": "a case", "repeats": 2, "libraries": True},
        "variants": {
            "KAN": row(80e6, 0.1),
            COMPILED: {"cannot": "no double backward"},
            "MLP": row(1e6, 0.001),
            "stream": row(1e6, 0.05),
            "stream 4000000": row(2e6, 0.02),
        }
        | more,
        "code": {"commit": "0" * 40, "dirty": False},
        "versions": {"torch": "2.9"},
        "hardware": {"name": "Chip", "threads": 1},
    }


def test_tables() -> None:
    table = memory_report.case_table(result())
    assert "| stream | 1.00 | - | - | 1.00 | 80.0 | 50.0 | 0.50 | 20 % |" in table
    assert "cannot: no double backward" in table
    line = memory_report.overview([result()]).splitlines()[2]
    assert line == "| a case | 80.00 | - | - | 1.00 | **1.00** | 80.0 | 0.50 | - |"
    compiled = memory_report.overview([result(**{COMPILED: row(40e6, 0.04)})]).splitlines()[2]
    assert compiled.endswith("| 0.50 | 1.25 |")
    assert memory_report.overview([]) == memory_report.targets([]) == "*No runs yet.*"


def test_growth() -> None:
    line = {
        "KAN": [[1024, 2_000_000], [2048, 5_000_000]],
        "stream": [[1024, 1_000_000], [2048, 1_060_000]],
    }
    table = memory_report.growth(dict.fromkeys(("connections", "grid", "batch"), line))
    assert "| converted, streamed | 1.0 | 1.1 |" in table
    assert table.count("| 1,024 | 2,048 |") == 3


def test_targets_are_met_or_missed_by_the_measured_figures() -> None:
    lines = memory_report.targets([result()]).splitlines()
    assert "| fine-grid | peak <= 1/75 of the KAN's | 1/80 | stream | met |" in lines
    assert "| fine-grid | peak <= 1/50 of the paper's code | not measured |  | - |" in lines
    time = "| fine-grid | time <= 0.30 of the KAN's (with peak 1/33 of the KAN's) |"
    assert f"{time} 0.2 | stream 4000000 | met |" in lines
    # a budget that takes too much memory does not count
    heavy = memory_report.targets([result(**{"stream 4000000": row(3e6, 0.02)})])
    assert f"{time} 0.5 | stream | **missed** |" in heavy.splitlines()
    rows = result(**{"stream": row(3e6, 0.1), "stream 4000000": row(3e6, 0.1)})["variants"]
    assert judge(Target("", "seconds", "KAN", 0.3, 1 / 33), rows).met is False
    assert judge(Target("", "allocated_bytes", PAPER, 1.0), rows).met is None


def test_pages_are_rewritten_and_checked(tmp_path: Path) -> None:
    def section(name: str) -> str:
        return f"<!-- results:{name} -->\nold\n<!-- /results:{name} -->\n"

    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(section("memory"))
    page = tmp_path / "docs" / "execution.md"
    page.write_text("".join(map(section, ("memory-cases", "memory-targets", "memory-growth"))))
    arguments = ["--root", str(tmp_path), "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match="stale: run"):
        memory_report.main([*arguments, "--check"])
    memory_report.main(arguments)
    assert "old" not in page.read_text() + (tmp_path / "README.md").read_text()
    memory_report.main([*arguments, "--check"])


def test_the_pages_have_what_the_result_files_give() -> None:
    memory_report.main(["--check"])
