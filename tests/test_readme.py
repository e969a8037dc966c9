"""The code on the front page runs, and its generated tables are up to date."""

import re
from pathlib import Path

import pytest
import torch

from recipes import report

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # pykan's own
def test_python_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    assert len(BLOCKS) >= 2
    for block in BLOCKS:
        exec(block, namespace)
    printed = capsys.readouterr().out
    assert "act_fun.0" in printed
    assert "meta-learner #0" in printed
    assert (tmp_path / "kan.safetensors").exists()
    model = namespace["same"]
    assert isinstance(model, torch.nn.Module)
    assert [type(m).__name__ for m in model.act_fun] == ["KANLayer"] * 3


def test_the_first_block_is_short() -> None:
    assert len(BLOCKS[0].strip().splitlines()) <= 11


def test_links_to_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (Path(__file__).parents[1] / target).exists(), target


def test_tables_are_what_the_result_files_give() -> None:
    report.main(["--check"])
