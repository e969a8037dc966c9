"""Peak memory and time of a training step in each mode of execution, on inputs of a given shape."""

import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import RenderableType
from torch import Tensor, nn

import kanmeta
from kanmeta.cli.output import bytes_text, table
from kanmeta.cli.peak import peak_bytes
from kanmeta.cli.targets import CommandError, foreign
from kanmeta.layer_metric import first_tensor

__all__ = ["bench_record", "bench_tables"]

MODES = ("materialize", "regenerate", "stream")


def shape_of(text: str) -> tuple[int, ...]:
    """Sizes from ``"128,784"``.

    Raises:
        CommandError: it is something else.
    """
    try:
        shape = tuple(int(part) for part in text.split(","))
        if min(shape) < 1:
            raise ValueError(text)
    except ValueError as error:
        raise CommandError(f"--input {text!r}: expected sizes such as 128,784") from error
    return shape


def bench_record(
    model: nn.Module,
    options: dict[str, Any],
    shapes: Sequence[tuple[int, ...]],
    budget: int | None,
    repeats: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Measure forward, backward and Adam of ``model`` as it is and converted in each mode.

    All variants live in this process and take turns in random order, so that what else runs on
    the machine hits all alike. The loss is the mean square of the first output; inputs are normal
    numbers.

    Args:
        model: not converted; not changed.
        options: of ``kanmeta.convert``.
        shapes: of the model's positional arguments.
        budget: bytes of scratch of ``"stream"`` and ``"auto"``; None leaves ``"auto"`` out.
        repeats: steps of each variant.
        generator: of the inputs.
    """
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    converted = kanmeta.convert(copy.deepcopy(model), **options)
    variants = {"as it is": model}
    for mode in (*MODES, *(() if budget is None else ("auto",))):
        scratch = budget if mode in ("stream", "auto") else None
        variants[mode] = kanmeta.set_execution(copy.deepcopy(converted), mode, budget=scratch)
    steps: dict[str, Callable[[], None]] = {}
    rows: dict[str, dict[str, float]] = {}
    with foreign("a training step"):
        for name, variant in variants.items():
            steps[name], alive = _step(variant, inputs)
            steps[name]()  # makes Adam's state; streamed layers are compared with the library's
            rows[name] = {"peak_bytes": peak_bytes(steps[name], alive())}
        times = _times(steps, repeats)
    for name, seconds in times.items():
        rows[name] |= {"seconds": statistics.median(seconds)}
    return {
        "inputs": [[*shape] for shape in shapes],
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "budget": budget,
        "modes": rows,
    }


def _step(
    model: nn.Module, inputs: Sequence[Tensor]
) -> tuple[Callable[[], None], Callable[[], list[Tensor]]]:
    """A training step, and the tensors that live between steps."""
    optimizer = torch.optim.Adam(p for p in model.train().parameters() if p.requires_grad)

    def step() -> None:
        first_tensor(model(*inputs)).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def alive() -> list[Tensor]:
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        return [*inputs, *model.parameters(), *model.buffers(), *state]

    return step, alive


def _times(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of the process's CPU time of each step."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for _ in range(repeats):
        for name in order.sample(sorted(steps), len(steps)):
            begin = time.process_time()
            steps[name]()
            times[name].append(time.process_time() - begin)
    return times


def bench_tables(record: dict[str, Any]) -> list[RenderableType]:
    """What people see of :func:`bench_record`."""
    rows = record["modes"]
    base = rows["as it is"]
    shapes = " and ".join(" x ".join(map(str, shape)) for shape in record["inputs"])
    shown = table(
        "mode",
        ">peak memory",
        ">of as it is",
        ">CPU time",
        ">of as it is",
        rows=[
            (
                name,
                bytes_text(row["peak_bytes"]),
                f"{row['peak_bytes'] / base['peak_bytes']:.2f}",
                f"{1e3 * row['seconds']:,.1f} ms",
                f"{row['seconds'] / max(base['seconds'], 1e-9):.2f}",
            )
            for name, row in rows.items()
        ],
    )
    return [
        shown,
        f"forward, backward and Adam on {shapes}; live tensors; median of {record['repeats']} "
        f"steps of {record['threads']} thread(s)",
    ]
