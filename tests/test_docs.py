"""The pages under docs/: their code runs, their links exist, and no adapter is left out."""

import fnmatch
import re
from pathlib import Path

import pytest

from kanmeta.registry import all_adapters
from tests import stand_ins

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
@pytest.mark.filterwarnings("ignore")  # pykan's own
def test_python_blocks_run_in_order(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "pykan" in page.name:
        pytest.importorskip("kan", reason="pykan is not installed")
    monkeypatch.chdir(tmp_path)
    stand_ins.install(monkeypatch)
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(block, namespace)
    if page.name == "adapters.md":
        assert capsys.readouterr().out.strip() == "torch.Size([2, 32, 32, 1])"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_to_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_layer_is_on_the_page() -> None:
    page = (DOCS / "libraries.md").read_text()
    named = re.findall(r"`([\w*]+)`", page)
    for adapter in all_adapters():
        for cls in adapter.class_names:
            cls = cls.replace("NDLayer", "2D").replace("ReLUConv", "ReLUKANConv")
            assert any(fnmatch.fnmatchcase(cls, pattern) for pattern in named), cls
