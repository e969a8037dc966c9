"""What test_faults.py runs in processes of its own: they are killed, or lack room on the disk.

``python -m tests.fault_scripts NAME FOLDER [ARGUMENT ...]``
"""

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from recipes.reference.efficient_kan import KAN

TARGET = "recipes.reference.efficient_kan:KAN([40, 30])"


def fresh() -> nn.Module:
    return nn.Sequential(KAN([40, 30]), nn.Linear(30, 100), nn.Linear(100, 200))


def filled(value: float) -> nn.Module:
    """A converted model whose numbers are all ``value``, or that times a pattern."""
    model = kanmeta.convert(fresh())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(value * pattern(p))
    return model


def pattern(p: Tensor) -> Tensor:
    """Numbers that cannot be compressed for the plain part, ones for prompts and meta-learner."""
    if len(p) != 200:
        return torch.ones_like(p)
    return torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) + 0.5


def value_in(path: Path) -> float:
    """The number that all parameters of the model in a file are; a file that mixes two shows."""
    model = kanmeta.load(fresh(), path)
    values = torch.cat([(p.detach() / pattern(p)).flatten() for p in model.parameters()]).unique()
    assert len(values) == 1, f"{path} mixes {values}"
    return float(values)


def kill(folder: Path, number: str, seed: str) -> None:
    """Kill a process that saves, ``number`` times; say how often that interrupted a save."""
    models = [filled(1.0), filled(2.0)]
    paths = {folder / "plain": None, folder / "coded": 4}
    for path, bits in paths.items():
        kanmeta.save(models[0], path, prompt_bits=bits)
    chance, interrupted, seen = random.Random(int(seed)), 0, set()
    for _ in range(int(number)):
        child = os.fork()
        if child == 0:
            while True:
                for model in models:
                    for path, bits in paths.items():
                        kanmeta.save(model, path, prompt_bits=bits)
        time.sleep(chance.uniform(0, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen |= {value_in(path) for path in paths}
        left = {p.name for p in folder.iterdir()} - {p.name for p in paths}
        assert len(left) <= 2, left  # of this child, and of one before, the other file's
        interrupted += bool(left)
    assert seen == {1.0, 2.0}
    for path, bits in paths.items():
        kanmeta.save(models[0], path, prompt_bits=bits)
    assert sorted(p.name for p in folder.iterdir()) == ["coded", "plain"]
    sys.stdout.write(str(interrupted))


def refuse(folder: Path, number: int, others: int) -> None:
    """Saving fails with an OSError of this number, which leaves all as it was."""
    model = filled(2.0)
    for path, bits in ((folder / "plain", None), (folder / "coded", 8), (folder / "new", None)):
        with pytest.raises(OSError, match=re.escape(str(path))) as raised:
            kanmeta.save(model, path, prompt_bits=bits)
        assert raised.value.errno == number or os.strerror(number) in str(raised.value)
    assert value_in(folder / "plain") == value_in(folder / "coded") == 1.0
    assert len(list(folder.iterdir())) == 2 + others


def prepare(folder: Path) -> None:
    kanmeta.save(filled(1.0), folder / "plain")
    kanmeta.save(filled(1.0), folder / "coded", prompt_bits=8)


def disk_full(folder: Path) -> None:
    mount("-o", "size=600k", folder)
    prepare(folder)
    with (folder / "filler").open("wb") as file:
        file.write(bytes(shutil.disk_usage(folder).free - 4096))
    refuse(folder, errno.ENOSPC, others=1)


def read_only(folder: Path) -> None:
    mount("-o", "size=600k", folder)
    prepare(folder)
    mount("-o", "remount,ro", folder)
    refuse(folder, errno.EROFS, others=0)
    command = [sys.executable, "-m", "kanmeta", "convert", TARGET]
    for out in (folder / "new", folder / "plain"):
        done = subprocess.run(
            [*command, out, "--force"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: no file can be made in {folder} (Read-only file")
        assert "give another place" in done.stderr
    with tempfile.TemporaryDirectory() as other:  # the advice
        subprocess.run([*command, f"{other}/new"], check=True)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", *arguments[:-1], "tmpfs", arguments[-1]], check=True)


def file_size(folder: Path) -> None:
    """The file may not grow beyond a page: a quota."""
    prepare(folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    refuse(folder, errno.EFBIG, others=0)


def low_memory(folder: Path) -> None:
    """Load a file of 50 MB, and look at the process's own memory at every call of a function.

    What is mapped from the file is not its own: the system takes it back when it is needed.
    """

    def build() -> nn.Module:
        return nn.Sequential(KAN([40, 30]), *(nn.Linear(1000, 1000) for _ in range(12)))

    kanmeta.save(kanmeta.convert(build()), folder / "large")
    kanmeta.load(build(), folder / "large")  # imports what it needs
    model, largest = build(), 4_000_000
    before = most = _own_memory()

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, _own_memory())

    sys.setprofile(look)
    kanmeta.load(model, folder / "large")
    sys.setprofile(None)
    assert most - before < largest + 8_000_000, f"{most - before} bytes"
    sys.stdout.write(str(most - before))


def _own_memory() -> int:
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * resource.getpagesize()


def write(folder: Path, value: str) -> None:
    """Save thirty times, beside another process that does the same."""
    model = filled(float(value))
    for _ in range(30):
        kanmeta.save(model, folder / "plain")
        assert value_in(folder / "plain") in (1.0, 2.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, folder, *arguments = sys.argv[1:]
    globals()[name](Path(folder), *arguments)
