"""Building the variants of a case, and measuring them in turn; see :mod:`recipes.memory`."""

import argparse
import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kanmeta
from recipes.memory_cases import Case, Origins, spline_case
from recipes.records import REPOSITORY
from recipes.tracking import allocated_peak, peak_bytes, resident_peak

__all__ = [
    "COMPILED",
    "OUT",
    "PAPER",
    "Step",
    "add_options",
    "alone",
    "build",
    "measure",
    "peak",
    "resident",
    "variants",
]

Step = Callable[[], None]
COMPILED, PAPER = "KAN compiled", "paper"
OUT = REPOSITORY / "results" / "memory"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where classes come from and where to compute."""
    parser.add_argument(
        "--upstream", type=Path, help="folder with checkouts; default: the reference layers"
    )
    parser.add_argument("--paper", type=Path, help="checkout of the paper's implementation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT}")


def variants(case: Case) -> list[str]:
    """Names of what is compared, rivals first; ``stream 1000000`` has that budget in bytes."""
    paper = [] if case.paper is None else [PAPER]
    modes = ["materialize", "regenerate", "stream", "auto"]
    return ["KAN", COMPILED, *paper, "MLP", *modes, *(f"stream {b}" for b in case.budgets)]


def build(case: Case, variant: str) -> nn.Module:
    """Model of one variant, with the same seed for all."""
    torch.manual_seed(0)
    if variant == "MLP":
        return case.rival()
    if variant == PAPER:
        assert case.paper is not None
        return case.paper()
    model = case.model()
    if variant == COMPILED:
        model.compile()
    if variant.startswith("KAN"):
        return model
    mode, _, budget = variant.partition(" ")
    kanmeta.convert(model, execution="auto", **case.options)
    return kanmeta.set_execution(model, mode, budget=int(budget) if budget else None)


def stepper(
    case: Case, variant: str, device: torch.device
) -> tuple[Step, Callable[[], list[Tensor]]]:
    """A training step, and the tensors that live between steps."""
    model = build(case, variant).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    torch.manual_seed(1)
    x = case.inputs().to(device)

    def step() -> None:
        case.loss(model, x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def alive() -> list[Tensor]:
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        return [x, *model.parameters(), *model.buffers(), *state]

    return step, alive


def peak(case: Case, variant: str, device: torch.device) -> int:
    """Peak of allocated bytes of a step."""
    step, alive = stepper(case, variant, device)
    step()
    return allocated_peak(step, alive())


def measure(
    case: Case, names: Sequence[str], repeats: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Peak bytes, and seconds of each step, of each variant.

    A compiled model that torch refuses to train has only the reason, as ``"cannot"``.
    """
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        step, alive = stepper(case, name, device)
        try:
            step()  # allocates Adam's state; compiles; compares bases with the library's
        except RuntimeError as error:
            if name != COMPILED:
                raise
            rows[name] = {"cannot": str(error).splitlines()[0]}
            continue
        gc.collect()
        steps[name] = step
        rows[name] = {"allocated_bytes": allocated_peak(step, alive())}
        if name != COMPILED:  # which is not dispatched operation by operation
            rows[name]["live_bytes"] = peak_bytes(step, alive())
    for name, times in _timed(steps, repeats, device).items():
        rows[name] |= {"seconds": statistics.median(times), "times": times}
    return rows


def _timed(steps: Mapping[str, Step], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of all steps, in a new random order every time: what else runs hits all alike."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name in order.sample(list(steps), len(steps)):
            start = _clock(device)
            steps[name]()
            times[name].append(_clock(device) - start)
    return times


def _clock(device: torch.device) -> float:
    """Seconds of this process on a CPU; on a GPU those on the wall, when all is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


def resident(case: str, variant: str, arguments: Sequence[str]) -> int:
    """Growth of the resident memory of a fresh process that builds and trains, in bytes."""
    command = [sys.executable, "-m", "recipes.memory", "--case", case, "--alone", variant]
    # Else glibc keeps what is freed in pieces: up to twice what is alive, in all variants.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return int(result.stdout.strip().splitlines()[-1])


def alone(case: Case, variant: str) -> int:
    """What :func:`resident` runs."""
    device = torch.device("cpu")
    small = spline_case(Origins(), (4, 3, 2), 5, 4)
    stepper(small, variant if variant in ("KAN", "MLP") else "stream", device)[0]()  # loads code
    steps: list[Step] = []

    def train() -> None:
        steps.append(stepper(case, variant, device)[0])
        steps[0]()
        steps[0]()

    return resident_peak(train)
