"""Peak memory of a function in two ways: counting live tensors, and asking the kernel."""

import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from kanmeta.cli.peak import peak_bytes

__all__ = ["peak_bytes", "resident_peak"]


def resident_peak(function: Callable[[], object]) -> int:
    """By how many bytes the peak of this process's resident memory grows in two calls.

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
        function()
        return (_kilobytes(status, "VmHWM") - before) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def _kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
