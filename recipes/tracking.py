"""Peak memory of a function in three ways: live tensors, torch's allocator, and the kernel.

The first two count the same bytes and agree; only the allocator sees what compiled code allocates.
"""

import gc
import resource
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["allocated_peak", "peak_bytes", "resident_peak"]


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages of all results of operations that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor``, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return
        self._known[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


def peak_bytes(function: Callable[[], object], alive: Sequence[Tensor]) -> int:
    """Most bytes of tensors that are alive at once while ``function`` runs, as torch dispatches it.

    Args:
        function: what to run; nothing of it compiled.
        alive: tensors that exist before.
    """
    counter = _Counter()
    for tensor in alive:
        counter.add(tensor)
    with counter:
        function()
    return counter.peak


def allocated_peak(function: Callable[[], object], alive: Sequence[Tensor]) -> int:
    """Most bytes that torch's allocator has given out at once while ``function`` runs.

    Args:
        function: what to run; it may be compiled.
        alive: tensors that exist before, of which the profiler of the CPU knows nothing.
    """
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in alive}
    live = peak = sum(storages.values())
    if alive and alive[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - live  # models that wait for their turn
        function()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated()) - others
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def resident_peak(function: Callable[[], object]) -> int:
    """By how many bytes the peak of this process's resident memory grows in a call.

    Run it in a fresh process: what was allocated and freed before is used again unnoticed. It
    includes code that is loaded and what the allocator does not give back.
    """
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    status = Path("/proc/self/status")
    if status.exists():
        before = _kilobytes(status, "VmRSS")
        try:
            reset.write_text("5")  # the peak starts anew
        except OSError:
            before = _kilobytes(status, "VmHWM")
        function()
        return (_kilobytes(status, "VmHWM") - before) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def _kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
