"""FSDP2 in two processes: gradients are those of one process, state goes to disk and back."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from tests import two_processes
from tests.cases import kan

WIDTHS = (20, 30, 30, 10)
MODES = ("materialize", "regenerate", "stream")


def built(mode: str = "materialize") -> nn.Module:
    """Three layers that share one meta-learner."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kanmeta.convert(kan(*WIDTHS).double(), execution=mode)
    return kanmeta.set_execution(model, mode, budget=None if mode == "materialize" else 20_000)


def data(rank: int | None = None) -> Tensor:
    """Rows of one rank, or all."""
    x = torch.rand(8, WIDTHS[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return x if rank is None else x[4 * rank : 4 * rank + 4]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    return y.square().mean()


def shard_one_by_one(model: nn.Module, **options: object) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model.layers:  # type: ignore[union-attr]
        fully_shard(layer, **options)
    return fully_shard(model)  # type: ignore[no-any-return]


def shard_whole(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)  # type: ignore[no-any-return]


def shard_parts(model: nn.Module) -> nn.Module:
    return kanmeta.fully_shard(model, [*model.layers])  # type: ignore[arg-type]


def trained(model: nn.Module, rank: int | None) -> list[Tensor]:
    """Parameters after two steps, the first of two batches, and all gradients on the way."""
    optimizer = torch.optim.AdamW(kanmeta.param_groups(model, lr=1e-2))
    with torch.no_grad():
        loss(model, data(rank))  # evaluation leaves nothing behind
    found = []
    for step in range(2):
        for _ in range(2 - step):
            loss(model, data(rank)).backward()
        found += [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    return [full(t) for t in found + list(model.parameters())]


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def gradients_are_those_of_one_process(rank: int, folder: str) -> None:
    for mode in MODES:
        expected = trained(built(mode), None)
        assert all(t.abs().sum() > 0 for t in expected)
        for shard in (shard_whole, shard_parts):
            model = shard(built(mode))
            assert all(hasattr(p, "full_tensor") for p in model.parameters())
            for mine, theirs in zip(trained(model, rank), expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def what_cannot_work_says_so(rank: int, folder: str) -> None:
    for options in ({}, {"reshard_after_forward": False}):
        model = shard_one_by_one(built(), **options)
        with pytest.raises(
            errors.ExecutionError, match=r"Shard with kanmeta\.fully_shard\(model, p"
        ):
            model(data(rank))
    model = shard_parts(built())
    with pytest.raises(errors.ExecutionError, match="Call the whole model, whose forward"):
        kanmeta.coefficients(model)
    with pytest.raises(errors.ExecutionError, match="sharded"):
        kanmeta.materialize(model)
    with pytest.raises(errors.WrappedModelError, match="before it is sharded"):
        kanmeta.convert(model)
    loss(model, data(rank)).backward()  # still a model
    kanmeta.save(model, f"{folder}/advice.safetensors")  # the advice helps
    torch.distributed.barrier()
    same = kanmeta.load(kan(*WIDTHS).double(), f"{folder}/advice.safetensors")
    assert [*kanmeta.coefficients(same)] == ["layers.0", "layers.1", "layers.2"]


def state_goes_to_disk_and_back(rank: int, folder: str) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import state_dict as states

    model = shard_parts(built())
    optimizer = torch.optim.AdamW(kanmeta.param_groups(model, lr=1e-2))
    loss(model, data(rank)).backward()
    optimizer.step()
    kept = [*states.get_state_dict(model, optimizer)]
    checkpoint.save(dict(zip(("model", "optimizer"), kept, strict=True)), checkpoint_id=folder)
    kanmeta.save(model, f"{folder}/kan.safetensors")
    kanmeta.save(model, f"{folder}/kan4.safetensors", prompt_bits=4)

    fresh = built()
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    fresh = shard_whole(fresh)  # sharded in another way
    other = torch.optim.AdamW(kanmeta.param_groups(fresh, lr=1.0))
    kept = [*states.get_state_dict(fresh, other)]
    read = dict(zip(("model", "optimizer"), kept, strict=True))
    checkpoint.load(read, checkpoint_id=folder)
    states.set_state_dict(
        fresh, other, model_state_dict=read["model"], optim_state_dict=read["optimizer"]
    )
    for m, o in ((model, optimizer), (fresh, other)):
        o.zero_grad()
        loss(m, data(rank)).backward()
        o.step()
    for mine, theirs in zip(fresh.parameters(), model.parameters(), strict=True):
        assert torch.equal(full(mine), full(theirs))


def test_two_processes_train_save_and_load(tmp_path: Path) -> None:
    from torch.distributed import checkpoint

    two_processes.run(
        tmp_path,
        gradients_are_those_of_one_process,
        what_cannot_work_says_so,
        state_goes_to_disk_and_back,
    )
    compact = kanmeta.load(kan(*WIDTHS).double(), tmp_path / "kan.safetensors")
    # One process, without a group, reads what two wrote.
    model = built()
    state = {"model": model.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is no process group
        checkpoint.load(state, checkpoint_id=str(tmp_path), no_dist=True)
    model.load_state_dict(state["model"])
    assert not torch.equal(model(data()), built()(data()))
    assert torch.equal(compact(data()), model(data()))
    coarse = kanmeta.load(kan(*WIDTHS).double(), tmp_path / "kan4.safetensors")
    torch.testing.assert_close(coarse(data()), model(data()), rtol=0.5, atol=0.1)


def test_parts_that_are_none(tmp_path: Path) -> None:
    model = built()
    for part in (model, nn.Linear(2, 2)):
        with pytest.raises(errors.PlanError, match=r"some of its layers or blocks, such as \[\*"):
            kanmeta.fully_shard(model, [part])
    with pytest.raises(errors.NothingToConvertError):
        kanmeta.fully_shard(kan(*WIDTHS), [])
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="nonsense"):
        kanmeta.fully_shard(model, [*model.layers], nonsense=1)  # type: ignore[arg-type]
    assert list(model.state_dict()) == list(state)
