"""The recipe that compresses a trained model: what it writes is what it measures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import kanmeta
from recipes.compress import accuracy_on, compress, main
from tests.cases import kan

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")  # a tiny one

SIZES = (12, 40, 4)
FAST = {"fit_steps": 50, "layer_steps": 30, "steps": 60, "progress": False}


def make() -> nn.Module:
    return kan(*SIZES)


def test_the_table_is_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, x = make(), torch.rand(600, 12) * 2 - 1
    labels = teacher(x).argmax(1)
    path = tmp_path / "compact.safetensors"
    measure = accuracy_on(x, labels)
    result = compress(
        make, teacher.state_dict(), path, data=x, bits=4, measure=measure, convert={"dim_z": 2},
        generator=torch.Generator().manual_seed(0), **FAST,
    )  # fmt: skip
    plain = tmp_path / "plain.safetensors"
    save_file(teacher.state_dict(), plain)
    assert result.bytes_before == plain.stat().st_size
    assert result.bytes_after == path.stat().st_size < 0.4 * result.bytes_before
    assert result.before == 100
    assert result.after == measure(kanmeta.load(make(), path).eval())
    assert 50 < result.after < 100
    assert [s.name for s in result.report.stages][-1] == "outputs (kl), 4 bits"
    assert f"{result.bytes_after:,}" in str(result)
    assert result.as_dict()["report"]["layers"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    teacher, x = make(), torch.rand(50, 12)
    save_file(teacher.state_dict(), tmp_path / "w.safetensors")
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", teacher(x).argmax(1).numpy())
    out = tmp_path / "out.safetensors"
    main([
        "tests.test_compress:make", str(tmp_path / "w.safetensors"), str(out), "--bits", "8",
        "--dim-z", "9", "--test", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"),
    ])  # fmt: skip
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"| compact | {out.stat().st_size:,} |" in last
    assert float(last.split("|")[-2]) > 90
