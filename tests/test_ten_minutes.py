"""The newcomer's script on the front page works word for word; setting up is left out here."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_ten_minutes(tmp_path: Path) -> None:
    section = (
        (ROOT / "README.md").read_text().partition("## Ten minutes\n")[2].partition("\n## ")[0]
    )
    blocks = re.findall(r"```(sh|python)\n(.*?)```", section, flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "python", "sh"]
    setting_up = ["python3 -m venv .venv && . .venv/bin/activate", "pip install -e '.[cli,plot]'"]
    lines = [line for kind, text in blocks for line in text.splitlines() if kind == "sh"]
    assert lines[:2] == setting_up
    (tmp_path / "digits.py").write_text(blocks[1][1])
    programs = {"kanmeta": [sys.executable, "-m", "kanmeta"], "python": [sys.executable]}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    shown = ""
    for line in lines[2:]:
        program, *arguments = shlex.split(line)
        command = [*programs[program], *arguments]
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}:\n{done.stdout}{done.stderr}"
        shown += done.stdout
    assert float(re.findall(r"([\d.]+)% of unseen digits", shown)[0]) > 80
    assert "8-bit codes" in shown
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"digits.py", "digits.safetensors", "functions.png", "plain.safetensors"}
