"""HF accelerate around converted models, in one process and in two."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kanmeta
from tests import two_processes
from tests.cases import kan

pytest.importorskip("accelerate", reason="needs pip install accelerate")

WIDTHS = (20, 30, 30, 10)


def built() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kanmeta.convert(kan(*WIDTHS).double())


def batches(size: int) -> DataLoader[tuple[Tensor, ...]]:
    x = torch.rand(16, WIDTHS[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(x), batch_size=size)


def trained_by_hand() -> nn.Module:
    model = built()
    optimizer = torch.optim.SGD(kanmeta.param_groups(model, lr=0.5))
    for (x,) in batches(8):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


def trained_by_accelerate(folder: str, size: int) -> None:
    """Train, save both ways, change all, and read accelerate's state again."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = built()
    optimizer = torch.optim.SGD(kanmeta.param_groups(model, lr=0.5))
    wrapped, prepared, loader = accelerator.prepare(model, optimizer, batches(size))
    for (x,) in loader:
        prepared.zero_grad()
        accelerator.backward(wrapped(x).square().mean())
        prepared.step()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        kanmeta.save(accelerator.unwrap_model(wrapped), f"{folder}/kan.safetensors")
    accelerator.save_state(f"{folder}/state")
    accelerator.wait_for_everyone()
    values = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    accelerator.load_state(f"{folder}/state")
    assert all(map(torch.equal, values, model.parameters()))


def in_two_processes(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}  # as a launcher
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    trained_by_accelerate(folder, size=4)


def same(folder: Path) -> None:
    expected = trained_by_hand()
    loaded = kanmeta.load(kan(*WIDTHS).double(), folder / "kan.safetensors")
    for mine, theirs, before in zip(
        loaded.parameters(), expected.parameters(), built().parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
        assert not torch.equal(mine, before)


@pytest.mark.filterwarnings("ignore")  # accelerate warns about this machine
def test_accelerate(tmp_path: Path) -> None:
    trained_by_accelerate(str(tmp_path), size=8)
    same(tmp_path)


def test_accelerate_in_two_processes(tmp_path: Path) -> None:
    two_processes.run(tmp_path, in_two_processes)
    same(tmp_path)
