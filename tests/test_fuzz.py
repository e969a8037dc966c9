"""Mutated and hostile checkpoints, a fixed seed; ``python -m tests.fuzz`` runs any number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = os.environ.get("KANMETA_FUZZ", "2000")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_mutated_files_load_or_raise_an_error_of_ours_and_do_nothing_else() -> None:
    pytest.importorskip("kan")
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", FILES, "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for outcome in ("Corrupt", "Foreign", "Mismatch", "Version", "loaded"):
        assert outcome in done.stdout
