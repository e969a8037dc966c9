"""recipes.report and recipes.demo."""

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import (
    data,
    demo,
    images_fc,
    readme_tables,
    records,
    report,
    report_page,
    results,
    section,
)
from recipes.paper import cell
from tests.small_images import write_data


def result(model: str, seed: int, value: float | None, **changes: Any) -> dict[str, Any]:
    jobs = images_fc.grid("fair", "cpu")
    job = next(j for j in jobs if j.model == model and j.seed == seed and j.row)
    content = job.content() | {"protocol": changes.pop("protocol", "last")}
    return {
        "metric": "test accuracy %",
        "value": value,
        "parameters": {"trainable": 1000, "frozen": 16},
        "file_bytes": 54_321,
        "curve": {"train_loss": [1.0, 0.5], "validation": [80.0, 85.0], "test": []},
        "job": content | changes.pop("job", {}),
        "code": {"commit": "0" * 40, "dirty": False} | changes,
        "versions": {"torch": "2.9"},
        "hardware": {"name": "Chip", "threads": 1},
    }


def test_headline_table() -> None:
    found = [result("KAN", seed, 90.0 + seed) for seed in range(3)] + [result("MetaKAN", 0, 95.5)]
    table = readme_tables.headline_table(found)
    first, second = table.splitlines()[2:4]
    for part in ("[784, 32, 10]", "1,016", "54,321", "91.00 ± 1.00", "| 3 |", "228,714", "85.59"):
        assert part in first
    for part in ("converted", "| 95.50 |", "| 1 |", "27,968", "87.73"):
        assert part in second
    assert "not committed" not in table
    assert "by test accuracy with seed 0" in table
    dirty = readme_tables.headline_table([*found, result("MetaKAN", 1, 95.0, dirty=True)])
    assert "1 of 5 runs are from code that was not committed" in dirty


def test_collapse_table() -> None:
    jobs = images_fc.collapse("fair", "cpu")
    found = [
        result("MetaKAN", 0, value, job=job.content())
        for job, value in zip(jobs, range(11, 92), strict=True)
    ]
    table = readme_tables.collapse_table(found)
    assert "9 of 81 runs collapsed (accuracy below 20 %" in table
    assert "ended at 11.00 %" in table
    assert "worst of 3 seeds" in table
    assert "| 0.001 | 0.0001 | 11.00 | 14.00 | 17.00 |" in table
    assert "no run" not in table
    assert "no run" in readme_tables.collapse_table(found[:10])


def fair(model: str, *values: float | None) -> list[dict[str, Any]]:
    return [result(model, n, value, protocol="fair") for n, value in enumerate(values)]


def test_pages_show_cells_beside_the_papers_and_what_was_not_run() -> None:
    found = fair("KAN", 88.0, 89.0) + fair("MetaKAN", 90.0, None)
    page = report_page.markdown_page(found)
    line = next(line for line in page.splitlines() if line.startswith("| FMNIST, 32, G5 | KAN"))
    for part in ("228,714", "1,016", "85.59", "88.50 ± 0.71 (2)", "count differs by -227,698"):
        assert part in line
    assert "90.00 (2), 1 not finite" in page
    assert "the Meta model is better in 1 of 1 cells, median difference +1.50 points" in page
    assert "Not run: 70 of 72." in page
    assert "Not run: 18 of 18." in page
    html = report_page.html_page(found)
    assert 'class="n better">90.00 (2)' in html
    assert "<svg" in html
    assert "not run" in html

    class Links(HTMLParser):
        """What a browser would fetch."""

        outside: list[str] = []  # noqa: RUF012 - of one test

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.outside += [v for k, v in attrs if k in ("src", "href") and v[0] != "#"]

    Links().feed(html)
    assert Links.outside == []


def test_a_baseline_that_wins_is_said_to() -> None:
    found = fair("KAN", 91.0) + fair("MetaKAN", 90.0)
    entries = results.by_cell(found)
    text = report_page.verdict([cell("T5|FMNIST|32|G5", m) for m in ("KAN", "MetaKAN")], entries)
    assert "better in 0 of 1 cells, median difference -1.00 points" in text


def test_readme_is_rewritten_and_checked(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    sections = "".join(
        f"text\n<!-- results:{name} -->\nold\n<!-- /results:{name} -->\n"
        for name in ("headline", "collapse")
    )
    readme.write_text(f"{sections}end\n")
    file = tmp_path / "results" / "images_fc" / "a.json"
    records.write_json(file, result("KAN", 0, 90.0))
    arguments = ["--readme", str(readme), "--results", str(tmp_path / "results")]
    arguments += ["--html", str(tmp_path / "page.html")]
    with pytest.raises(SystemExit, match="stale: run"):
        report.main([*arguments, "--check"])
    assert "old" in readme.read_text()
    report.main(arguments)
    text = readme.read_text()
    assert "old" not in text
    assert "90.00" in text
    assert text.endswith("<!-- /results:collapse -->\nend\n")
    assert "90.00" in (tmp_path / "results" / "README.md").read_text()
    assert "90.00" in (tmp_path / "page.html").read_text()
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
        section.replace_section(text, "a", "new")


def test_result_files_are_strict_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(tmp_path / "a.json", {"loss": math.nan})
    assert not (tmp_path / "a.json").exists()


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "data")
    demo.main(["--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
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
        demo.main(["--data-root", str(tmp_path)])


def test_demo_takes_digits_where_there_is_no_fashion_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(data.DEBIAN, "fashion-mnist", tmp_path)
    images = demo.find_images("efficient-kan", tmp_path)
    assert images.name == "digits"
    assert "--data-root" in capsys.readouterr().err
    assert images.train_images.shape == (1437, 8, 8)
    assert images.test_images.shape == (360, 8, 8)
    assert images.train_images.max() == 240
    assert images.test_labels.bincount().min() > 20


def test_variants_have_a_verdict_of_their_own() -> None:
    cells_of_row = [cell("T5|FMNIST|32|G5", m) for m in ("KAN", "MetaKAN")]
    wide = result("MetaKAN", 0, 91.0)
    wide["job"]["variant"] = "wider"
    found = [result("KAN", 0, 90.0), result("MetaKAN", 0, 89.0), wide]
    for r in found:
        r["job"]["protocol"] = "fair"
    texts = report_page.verdicts(cells_of_row, results.by_cell(found))
    assert [t.partition(":")[0] for t in texts] == ["Protocol fair", "Protocol fair, wider"]
    assert "better in 0 of 1" in texts[0]
    assert "better in 1 of 1" in texts[1]
