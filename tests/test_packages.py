"""The contract on the real KAN packages of the package index, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import packages

TESTS = Path(__file__).parent
MODULES = (
    "test_contract.py",
    "test_contract_torch.py",
    "test_contract_sizes.py",
    "test_writes.py",
    "test_checkpoint.py",
    "own_packages.py",
)


@pytest.mark.parametrize("name", packages.NAMES)
def test_package_keeps_the_contract(name: str) -> None:
    if not (packages.FOLDER / name).is_dir():
        pytest.skip(
            f"NOT TESTED ON THE REAL {name}: it is not in {packages.FOLDER}; `make test` installs "
            "it there, KANMETA_PACKAGES names another folder"
        )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", name]
        + [str(TESTS / module) for module in MODULES],
        cwd=TESTS.parent,
        env=os.environ | {"KANMETA_PACKAGE": name},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    if done.returncode or not passed:  # all skipped, or none selected, is no success
        pytest.fail(f"pytest for {name} ended with {done.returncode}\n{done.stdout}{done.stderr}")
