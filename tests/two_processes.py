"""Running functions of a test in two processes that talk by gloo, on any machine."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]

_PRELUDE = """
import importlib, os, sys, warnings
import torch
from torch import distributed

module, rank, folder, *functions = sys.argv[1:]
torch.set_num_threads(1)
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # libraries' own
warnings.filterwarnings("ignore", ".*deprecated.*")  # torch about itself
store = distributed.FileStore(f"{folder}/store", 2)
distributed.init_process_group("gloo", store=store, rank=int(rank), world_size=2)
for function in functions:
    getattr(importlib.import_module(module), function)(int(rank), folder)
    distributed.barrier()
distributed.destroy_process_group()
# FSDP's meshes keep the group, and with it gloo's threads. One that frees a tensor while the
# interpreter ends crashes the process (pytorch/pytorch#190489): leave without that end.
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""


def run(folder: Path, *functions: Callable[[int, str], None]) -> None:
    """Call each ``function(rank, folder)`` in both processes; fail if one fails.

    A process that fails ends the other one, which may wait for it. All functions of one module
    share the processes, because starting these takes longest.
    """
    module, names = functions[0].__module__, [function.__name__ for function in functions]
    logs = [folder / f"errors.{rank}" for rank in range(2)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank, log in enumerate(logs):
        command = [sys.executable, "-c", _PRELUDE, module, str(rank), str(folder), *names]
        with log.open("w") as file:
            processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=file))
    try:
        codes = [process.wait(timeout=300) for process in processes]
        assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    finally:
        for process in processes:
            process.kill()
            process.wait()
