"""Two processes with half of a batch each have the gradients of one with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import kanmeta
from recipes.reference import conv_kan
from tests.cases import kan

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")

MODES = ("materialize", "regenerate", "stream", "auto")
RANKS = 2


def nets() -> dict[str, tuple[nn.Module, Tensor]]:
    """Nets in which two layers share a meta-learner, and a whole batch: in tiles, in rows."""
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        conv_kan.KANConv2DLayer(2, 3, 2), conv_kan.KANConv2DLayer(3, 2, 2), nn.Flatten()
    )
    found: dict[str, tuple[nn.Module, Tensor]] = {
        "linear": (kan(3, 4, 2).double(), torch.randn(8, 3, dtype=torch.float64)),
        "convolutions": (convolutions.double(), torch.rand(4, 2, 5, 5, dtype=torch.float64)),
    }
    for model, _ in found.values():
        kanmeta.convert(model, clusters=1)
        assert len(kanmeta.meta_learners(model)) == 1
    return found


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of a mean over the batch, accumulated over two steps."""
    model.zero_grad()
    for _ in range(2):
        model(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    found: dict[tuple[str, str], list[Tensor]] = {}
    for name, (model, x) in nets().items():
        parallel = DistributedDataParallel(model)
        for mode in MODES:
            kanmeta.set_execution(model, mode, budget=3000)
            found[name, mode] = gradients(parallel, x.chunk(RANKS)[rank])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")
def test_gradients_are_those_of_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=RANKS)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    for name, (model, x) in nets().items():
        kanmeta.set_execution(model, "materialize")
        expected = gradients(model, x)
        assert all(g.any() for g in expected)
        for mode in MODES:
            for ranks in found:
                for ours, theirs in zip(ranks[name, mode], expected, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
