"""recipes.report and recipes.demo."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import data, demo, images_fc, records, report
from tests.small_images import write_data


def result(model: str, seed: int, accuracy: float, **code: Any) -> dict[str, Any]:
    return {
        "test_accuracy": accuracy,
        "parameters": {"trainable": 1000, "frozen": 16},
        "file_bytes": 54_321,
        "config": images_fc.single("headline", model, "mnist", (32,), seed, 5).config(),
        "code": {"commit": "0" * 40, "dirty": False} | code,
        "versions": {"torch": "2.9"},
        "hardware": {"name": "Chip", "threads": 1},
    }


def test_headline_table() -> None:
    results = [result("kan", seed, 90.0 + seed) for seed in range(3)] + [result("metakan", 0, 95.5)]
    table = report.headline_table(results)
    first, second = table.splitlines()[2:4]
    for part in ("[784, 32, 10]", "1,016", "54,321", "91.00 ± 1.00", "| 3 |", "228,714", "93.60"):
        assert part in first
    for part in ("converted", "| 95.50 |", "| 1 |", "27,968", "96.69"):
        assert part in second
    assert "not committed" not in table
    assert "by test accuracy with seed 0" in table
    dirty = report.headline_table([*results, result("metakan", 1, 95.0, dirty=True)])
    assert "1 of 5 runs are from code that was not committed" in dirty


def test_collapse_table() -> None:
    results = []
    for run, accuracy in zip(images_fc.collapse("mnist", (32,), 2), range(11, 92), strict=True):
        results.append(result("metakan", 0, accuracy) | {"config": run.config()})
    table = report.collapse_table(results)
    assert "9 of 81 runs collapsed (accuracy below 20 %" in table
    assert "ended at 11.00 %" in table
    assert "worst of 3 seeds" in table
    assert "| 0.001 | 0.0001 | 11.00 | 14.00 | 17.00 |" in table
    assert "no run" not in table
    assert "no run" in report.collapse_table(results[:10])


def test_readme_is_rewritten_and_checked(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    sections = "".join(
        f"text\n<!-- results:{name} -->\nold\n<!-- /results:{name} -->\n"
        for name in ("headline", "collapse")
    )
    readme.write_text(f"{sections}end\n")
    records.write_json(tmp_path / "results" / "headline" / "a.json", result("kan", 0, 90.0))
    arguments = ["--readme", str(readme), "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit, match="stale: run"):
        report.main([*arguments, "--check"])
    assert "old" in readme.read_text()
    report.main(arguments)
    text = readme.read_text()
    assert "old" not in text
    assert "90.00" in text
    assert text.endswith("<!-- /results:collapse -->\nend\n")
    report.main([*arguments, "--check"])
    report.main(arguments)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- results:a -->",
        "<!-- /results:a --><!-- results:a -->",
        "<!-- results:a --><!-- /results:a -->" * 2,
    ],
)
def test_broken_markers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        report.replace_section(text, "a", "new")


def test_result_files_are_strict_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(tmp_path / "a.json", {"loss": math.nan})
    assert not (tmp_path / "a.json").exists()


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "data")
    demo.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "its 40 outputs equal those of the model that was saved, bit for bit" in printed
    assert "layers.1.prompts                         10 x 32 x 1" in printed
    lines = {line[:22].strip(): line[22:].split() for line in printed.splitlines()[-4:]}
    assert lines["trainable parameters"] == ["254,080", "25,769", "9.9x"]
    sizes = [(tmp_path / "out" / f"{n}.safetensors").stat().st_size for n in ("kan", "metakan")]
    assert lines["bytes on disk"][:2] == [f"{size:,}" for size in sizes]
    assert len(lines["test accuracy, %"]) == 2


def test_demo_fails_if_the_second_process_disagrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    wrong = torch.zeros(40, 10)
    monkeypatch.setattr(demo, "outputs_of_second_process", lambda *arguments: wrong)
    with pytest.raises(SystemExit, match="FAILED"):
        demo.main(["--data", str(tmp_path)])


def test_demo_takes_digits_where_there_is_no_fashion_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(data.DEBIAN, "fashion-mnist", tmp_path)
    images = demo.find_images("efficient-kan", tmp_path)
    assert images.name == "digits"
    assert "--data" in capsys.readouterr().err
    assert images.train_images.shape == (1437, 8, 8)
    assert images.test_images.shape == (360, 8, 8)
    assert images.train_images.max() == 240
    assert images.test_labels.bincount().min() > 20
