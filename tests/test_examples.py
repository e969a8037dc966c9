"""The scripts in examples/ run in their smoke form and say what they should."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests import stand_ins

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "kan_transformer.py": r"feed_forward\.layers\.1 .*[\d.]+ % of symbols in their place",
    "pykan_symbolic.py": r"converted: \['act_fun\.0', 'act_fun\.1'\].*formula: .*x_.*plain KAN",
    "timm_kan_head.py": r"KAN +[\d.]+ % of held-out digits, [\d,]+ B\ndistilled +[\d.]+ %",
    "unet_conv_kan.py": r"up +torch-conv-kan/kan-conv .*intersection over union [\d.]+",
}


def test_every_example_is_run_and_on_the_page() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {*SAYS}
    assert scripts == {*re.findall(r"\(([\w.]+\.py)\)", (EXAMPLES / "README.md").read_text())}


@pytest.mark.parametrize("script", SAYS)
@pytest.mark.filterwarnings("ignore")  # pykan's own
def test_example(
    script: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if script.startswith("pykan"):
        pytest.importorskip("kan", reason="pykan is not installed")
        if sys.version_info >= (3, 13):  # it makes local variables with exec
            pytest.skip("pykan 0.2.8's symbolic_formula fails with Python 3.13")
    monkeypatch.chdir(tmp_path)
    stand_ins.install(monkeypatch)
    monkeypatch.setattr(sys, "argv", [script, "--quick"])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert re.search(SAYS[script], capsys.readouterr().out, flags=re.DOTALL)
    assert [*tmp_path.iterdir()] == []
