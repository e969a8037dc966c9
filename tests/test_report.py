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
    functions,
    images_fc,
    readme_tables,
    records,
    report,
    report_page,
    results,
    section,
    symbolic,
    verdicts,
    vit,
)
from recipes.figures import accuracy_by_parameters, error_by_dimension, training_curves
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
    assert "<svg" in html
    assert "5 epochs; code at 0000000000; torch 2.9" in html
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
    text = verdicts.verdict([cell("T5|FMNIST|32|G5", m) for m in ("KAN", "MetaKAN")], entries)
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
    texts = verdicts.verdicts(cells_of_row, results.by_cell(found))
    assert [t.partition(":")[0] for t in texts] == ["Protocol fair", "Variant wider"]
    assert "better in 0 of 1" in texts[0]
    assert "better in 1 of 1" in texts[1]


def test_a_variant_without_a_baseline_of_its_own_has_no_verdict() -> None:
    cells_of_row = [cell("T5|FMNIST|32|G5", m) for m in ("KAN", "MetaKAN")]
    other = fair("MetaKAN", 91.0)
    other[0]["job"]["variant"] = "second-order"
    texts = verdicts.verdicts(cells_of_row, results.by_cell(fair("KAN", 90.0) + other))
    assert texts[1] == "Variant second-order: no cell has both models."


@pytest.mark.parametrize(
    ("plain", "meta", "bold"),
    [
        ((87.0, 87.4), (88.0, 88.4), {("FMNIST, 32, G5", "MetaKAN")}),
        ((89.0, 89.4), (88.0, 88.4), {("FMNIST, 32, G5", "KAN")}),
        ((87.0, 87.4), (86.5, 88.5), set()),  # 0.3 apart, one has a spread of 1.4
        ((87.0,), (88.0, 88.4), set()),
        ((87.0, 87.4), (88.0, None), set()),
    ],
)
def test_bold_is_what_differs_by_more_than_the_spread(
    plain: tuple[float, ...], meta: tuple[float | None, ...], bold: set[tuple[str, str]]
) -> None:
    found = fair("KAN", *plain) + fair("MetaKAN", *meta)
    assert results.winners(results.table_of(5), results.by_cell(found)) == bold
    html = report_page.html_page(found)
    assert html.count('class="n better"') == len(bold)


def test_the_page_says_which_runs_are_of_code_that_was_not_committed() -> None:
    html = report_page.html_page([result("KAN", 0, 90.0, protocol="fair", dirty=True)])
    assert "<strong>1 of 1 runs are from code that was not committed.</strong>" in html


def test_figures_are_of_protocol_fair_alone() -> None:
    found = fair("KAN", 88.0, 89.0) + fair("MetaKAN", 90.0)
    drawn = [f(results.by_cell(found)) for f in (accuracy_by_parameters, training_curves)]
    assert all("<svg" in figure for figure in drawn)
    other = [result("KAN", 0, 90.0), *fair("MetaKAN", 91.0)]  # the first of protocol last
    other[1]["job"]["variant"] = "longer"
    entries = results.by_cell(other)
    assert [f(entries) for f in (accuracy_by_parameters, training_curves)] == ["", ""]
    assert "validation images" in drawn[1]


def test_sizes_of_networks_are_drawn_beside_errors() -> None:
    jobs = [j for j in functions.grid("fair", "cpu") if j.row.startswith("T4|") and j.seed == 0]
    found = [result("KAN", 0, 0.1, job=job.content(), protocol="fair") for job in jobs]
    entries = results.by_cell(found)
    assert len(entries) == 36
    assert error_by_dimension(entries).count("<!-- parameters -->") == 1


def more(recipe: str, model: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A result of a recipe without cells in the paper's tables."""
    grid = {"symbolic": symbolic.grid, "vit": vit.grid}[recipe]("fair", "cpu")
    job = next(j for j in grid if j.model == model and j.seed == seed)
    return result("KAN", 0, 0.5, job=job.content()) | changes


def test_pages_show_appendix_b_and_the_vision_transformer() -> None:
    page = report_page.markdown_page([])
    assert page.count("\n\nNot run.\n") == 2
    pruned = {"pruned_widths": [4, 5, 2, 1]}
    found = [more("symbolic", "KAN", 0, **pruned, formula_mse=0.25)]
    found += [more("symbolic", "KAN", 1, **pruned, formula_mse=None, value=1.5)]
    found += [more("vit", "MetaViT", seed, value=80.0 + seed) for seed in range(3)]
    page = report_page.markdown_page(found)
    for line in (
        "| KAN | fair | 1,016 | 0 | 5.00e-01 | 4, 5, 2, 1 | 2.50e-01 |",
        "| KAN | fair | 1,016 | 1 | 1.50 | 4, 5, 2, 1 | not finite |",
        "| KAN | fair | 1,016 | mean | 1.00 ± 0.71 |  | 2.50e-01 |",
        "| fashion-mnist | MetaViT | fair | 1,016 | 81.00 ± 1.00 (3) |",
    ):
        assert line in page
    html = report_page.html_page(found)
    for text in ("4, 5, 2, 1", "81.00 ± 1.00 (3)", 'href="#symbolic"', 'id="vit"'):
        assert text in html


def test_no_verdict_without_a_finite_pair_is_still_one() -> None:
    cells_of_row = [cell("T5|FMNIST|32|G5", m) for m in ("KAN", "MetaKAN")]
    found = [*fair("KAN", float("nan")), *fair("MetaKAN", 88.0)]
    found[0]["value"] = None
    (text,) = verdicts.verdicts(cells_of_row, results.by_cell(found))
    assert text == "Protocol fair: the Meta model is better in 1 of 1 cells."


def test_a_model_with_a_diverged_seed_is_not_bold() -> None:
    cells_of_row = [cell("T5|FMNIST|32|G5", m) for m in ("KAN", "MetaKAN")]
    found = [*fair("KAN", 87.0, 87.1, 87.2), *fair("MetaKAN", 88.0, 88.1, 88.2)]
    assert results.winners(cells_of_row, results.by_cell(found))
    found[-1]["value"] = None
    assert not results.winners(cells_of_row, results.by_cell(found))
