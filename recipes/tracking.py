"""Peak memory of a function in three ways: live tensors, torch's allocator, and the kernel.

The first two count the same bytes and agree; only the allocator sees what compiled code allocates.
"""

import gc
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kanmeta.cli.peak import peak_bytes

__all__ = ["allocated_peak", "peak_bytes", "resident_peak"]


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
