"""Checkpoints of every format that was released can be read, and compute what they computed.

The promise: files in tests/golden/ are never made anew; a version that cannot read one is wrong.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import kanmeta
from tests.golden import make

FOLDER = Path(make.__file__).parent
EXPECTED = json.loads((FOLDER / "outputs.json").read_text())
FILES = sorted(FOLDER.glob("*.safetensors"))


def model_for(name: str) -> nn.Module:
    if name.startswith("pykan"):
        pytest.importorskip("kan")
    return make.CASES[name][0]()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # pykan's own
def test_a_golden_file_computes_what_it_did(path: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    model = model_for(path.stem)
    unlike = make.outputs(model_for(path.stem))
    kanmeta.load(model, path)
    expected = torch.tensor(EXPECTED[path.stem])
    torch.testing.assert_close(torch.tensor(make.outputs(model)), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(torch.tensor(unlike), expected, rtol=1e-3)
    again = tmp_path / "again"
    bits = make.CASES[path.stem][3].get("prompt_bits")
    kanmeta.save(model, again, prompt_bits=bits)  # and can be saved as it was
    twin = kanmeta.load(model_for(path.stem), again)
    torch.testing.assert_close(torch.tensor(make.outputs(twin)), expected, rtol=1e-5, atol=1e-6)


def test_all_cases_have_a_file_and_they_are_small() -> None:
    assert {p.stem for p in FILES} == {*make.CASES} == {*EXPECTED}
    assert sum(p.stat().st_size for p in FILES) < 50_000
    formats = set()
    for path in FILES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            formats.add(kanmeta.checkpoint.headers.read(path).conversion["format"])
    assert formats == {1, 2, 3}


def test_making_them_anew_changes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in FOLDER.iterdir() if p.is_file()}
    make.main()
    assert {p.name: p.read_bytes() for p in FOLDER.iterdir() if p.is_file()} == before
