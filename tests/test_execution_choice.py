"""Choosing a mode, and what "auto" chooses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import PlanError
from kanmeta.surgery import bindings
from tests.cases import kan

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


def test_choosing_modes(tmp_path: Any) -> None:
    model = kanmeta.convert(kan(3, 4, 2), execution="auto")
    kanmeta.set_execution(model, "stream", layers="layers.1", budget=12345)
    assert [b.execution for _, b in bindings(model)] == ["auto", "stream"]
    assert [b.budget for _, b in bindings(model)] == [None, 12345]
    kanmeta.save(model, tmp_path / "m.safetensors")
    loaded = kanmeta.load(kan(3, 4, 2), tmp_path / "m.safetensors")
    assert [b.execution for _, b in bindings(loaded)] == ["auto", "stream"]
    with pytest.raises(PlanError, match="magic"):
        kanmeta.set_execution(model, "magic")
    with pytest.raises(PlanError, match="fits none"):
        kanmeta.set_execution(model, "stream", layers="layer.7")
    with pytest.raises(PlanError, match="budget"):
        kanmeta.set_execution(model, "stream", budget=0)


def test_auto_streams_large_layers_and_materializes_small_ones() -> None:
    """What stays alive for backward, in bytes."""

    def kept(model: nn.Module, x: Tensor) -> int:
        model(x)  # the first time the basis is compared with the library's
        found: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(x)
        assert y.requires_grad
        return sum(found.values())

    model, x = kanmeta.convert(kan(64, 64, 64)), torch.randn(512, 64)
    unlimited = kept(model, x)
    kanmeta.set_execution(model, "auto", budget=4 << 20)
    streamed = kept(model, x)
    kanmeta.set_execution(model, "materialize")
    whole = kept(model, x)
    inputs, prompts = 2 * x.numel() * 4, 2 * 64 * 64 * 4
    assert streamed < 1.3 * (inputs + prompts)
    assert whole == unlimited
    assert whole > 20 * streamed
    small = kanmeta.convert(kan(3, 4, 2))
    kanmeta.set_execution(small, "materialize")
    y = small(x[:4, :3])
    kanmeta.set_execution(small, "auto", budget=4 << 20)
    assert type(small(x[:4, :3]).grad_fn) is type(y.grad_fn)


def test_auto_without_a_budget_streams_what_is_large_and_faster_so() -> None:
    def fused(model: nn.Module, x: Tensor) -> bool:
        layer = next(b.layer for _, b in bindings(model))
        node = layer(x).grad_fn
        return any("Fused" in n.name() for n in (node, *(n for n, _ in node.next_functions)))

    model, x = kanmeta.convert(kan(64, 64), hidden=16), torch.randn(4, 64)
    assert not fused(model, x)
    assert fused(model, x.repeat(2000, 1))
    # Nobody asked for less memory: a layer whose basis is not known stays as it is.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fused(model, x.repeat(2000, 1))
