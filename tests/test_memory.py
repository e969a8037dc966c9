"""recipes.memory: what it measures, what it skips, and classes from checkouts."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recipes import memory, memory_measure
from recipes.checkouts import import_file, used_files
from recipes.memory_cases import NAMES, Origins, make_cases, spline_case
from recipes.memory_measure import COMPILED, PAPER, measure, variants
from recipes.memory_targets import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")

CPU = torch.device("cpu")
NET = """
import torch
class MetaKAN(torch.nn.Linear):
    def __init__(self, widths, hidden_dim, grid_size):
        super().__init__(widths[0], widths[-1])
"""


def options(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(quick=True, upstream=None, paper=None, device=CPU, out=folder)


def test_every_target_is_of_a_case_and_a_variant() -> None:
    cases = make_cases(Origins())
    assert tuple(cases) == NAMES
    assert {target.case for target in TARGETS} == set(NAMES)
    assert {target.rival for target in TARGETS} <= {"KAN", "MLP", COMPILED, PAPER}


def test_case_is_measured_once_for_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["KAN", "MLP", "stream", "stream 5000"]
    monkeypatch.setattr(memory, "variants", lambda case: names)
    code = {"commit": "a", "dirty": False}
    monkeypatch.setattr(memory, "code_state", lambda: dict(code))
    case = spline_case(Origins(), (8, 6, 4), 5, 32, 4)
    first = memory.run("tiny", case, options(tmp_path))
    assert list(first["variants"]) == names
    for row in first["variants"].values():
        assert len(row["times"]) == 3
        assert row["allocated_bytes"] == pytest.approx(row["live_bytes"], rel=0.01)
    kan, streamed = (first["variants"][name]["live_bytes"] for name in ("KAN", "stream 5000"))
    assert kan > 2 * streamed
    calls: list[str] = []

    def counted(*arguments: Any) -> dict[str, Any]:
        calls.append("measured")
        return {}

    monkeypatch.setattr(memory, "measure", counted)
    assert memory.run("tiny", case, options(tmp_path)) == first
    assert calls == []
    code["dirty"] = True
    memory.run("tiny", case, options(tmp_path))
    assert calls == ["measured"]


def test_what_a_compiler_refuses_is_recorded_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = spline_case(Origins(), (4, 3, 2), 5, 4, 4)

    def refuse() -> None:
        raise RuntimeError("no double backward\nand more")

    monkeypatch.setattr(memory_measure, "stepper", lambda *arguments: (refuse, list))
    assert measure(case, [COMPILED], 1, CPU) == {COMPILED: {"cannot": "no double backward"}}
    with pytest.raises(RuntimeError, match="no double"):
        measure(case, ["stream"], 1, CPU)


def test_paper_from_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "base_model").mkdir()
    file = tmp_path / "base_model" / "metakan.py"
    with pytest.raises(FileNotFoundError, match="expected a checkout"):
        import_file(file)
    file.write_text(NET)
    case = spline_case(Origins(paper=tmp_path), (4, 3, 2), 5, 4, 4)
    assert PAPER in variants(case)
    model = memory_measure.build(case, PAPER)
    assert isinstance(model, nn.Linear)
    assert model.weight.shape == (2, 4)
    assert len(used_files()["base_model/metakan.py"]) == 64
    assert PAPER not in variants(spline_case(Origins(), (4, 3, 2), 5, 4, 4))


def test_a_fresh_process_says_by_how_much_it_grew() -> None:
    command = [sys.executable, "-m", "recipes.memory", "--case", "small-net", "--alone", "MLP"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert 0 < int(done.stdout.splitlines()[-1]) < 50_000_000
