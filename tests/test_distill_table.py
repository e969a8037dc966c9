"""Tables and curve of results/distill are made from its files."""

import json
import shutil
from pathlib import Path

import pytest

from recipes.distill_table import OTHERS, curve, main
from recipes.records import REPOSITORY
from recipes.report import load

RESULTS = REPOSITORY / "results" / "distill"


def test_the_tables_are_what_the_files_give(tmp_path: Path) -> None:
    main(["--check"])
    copy = tmp_path / "distill"
    shutil.copytree(RESULTS, copy)
    path = next(copy.glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_accuracy": 12.34}))
    with pytest.raises(SystemExit, match="stale"):
        main(["--check", "--results", str(copy)])
    main(["--results", str(copy)])
    assert "12.34" in (copy / "README.md").read_text()
    main(["--check", "--results", str(copy)])


def test_the_curve_has_every_file_and_the_papers() -> None:
    found = [r for r in load(RESULTS) if r["files"]]
    (axes,) = curve(found).axes
    assert len(found) >= 4
    assert len(axes.lines) == len(found) + len(OTHERS)
    assert [len(line.get_xdata()) for line in axes.lines][: len(found)] == [
        len(r["files"]) for r in found
    ]
    assert {t.get_text() for t in axes.texts} == {*OTHERS}
    # The model from scratch of seed 0 in 2 bits: tuned, 143 times smaller, 0.53 points lost.
    scratch = next(
        line
        for line in axes.lines
        if "fashion-mnist, dim_z=1, from scratch" in str(line.get_label())
    )
    x, y = scratch.get_xdata()[-1], scratch.get_ydata()[-1]
    assert 143 < x < 144
    assert y == pytest.approx(0.53)
