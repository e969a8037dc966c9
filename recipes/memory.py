"""Peak memory and step time of converted models, against the KAN, a compiled KAN and an MLP.

    python -m recipes.memory                    # all cases
    python -m recipes.memory --case small-batch --quick

A step is forward, backward and Adam in float32. All variants of a case live in one process and
take turns, so that what else runs on the machine hits all alike; a step's time is the median of
the process's CPU time. Peak memory is measured twice, by counting the bytes of all tensors that
are alive (parameters, gradients, Adam's state, inputs, activations) and as the growth of a fresh
process's resident memory; on a GPU by torch's allocator. Writes JSON and a Markdown table.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kanmeta
from recipes.memory_cases import NAMES, Case, make_cases
from recipes.records import code_state, hardware, versions, write_json
from recipes.tracking import peak_bytes, resident_peak

__all__ = ["main"]

Step = Callable[[], None]


def variants(case: Case, compiled: bool) -> list[str]:
    """Names of what is compared, rivals first."""
    rivals = ["KAN", "KAN compiled"] if compiled else ["KAN"]
    modes = ["materialize", "regenerate", "stream", "auto"]
    return [*rivals, "MLP", *modes, *(f"stream {b}" for b in case.budgets)]


def build(case: Case, variant: str) -> nn.Module:
    """Model of one variant, with the same seed for all."""
    torch.manual_seed(0)
    if variant == "MLP":
        return case.rival()
    model = case.model()
    if variant.startswith("KAN"):
        return torch.compile(model) if "compiled" in variant else model  # type: ignore[return-value]
    mode, _, budget = variant.partition(" ")
    kanmeta.convert(model, execution="auto", **case.options)
    return kanmeta.set_execution(model, mode, budget=int(budget) if budget else None)


def stepper(case: Case, model: nn.Module) -> tuple[Step, Callable[[], list[Tensor]]]:
    """A training step, and the tensors that live between steps."""
    optimizer = torch.optim.Adam(model.parameters())
    torch.manual_seed(1)
    x = case.inputs()

    def step() -> None:
        case.loss(model, x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def alive() -> list[Tensor]:
        state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        return [x, *model.parameters(), *model.buffers(), *state]

    return step, alive


def measure(case: Case, names: Sequence[str], repeats: int) -> dict[str, dict[str, float]]:
    """Peak of live bytes and median seconds of a step, of each variant."""
    steps: dict[str, Step] = {}
    results: dict[str, dict[str, float]] = {}
    for name in names:
        step, alive = stepper(case, build(case, name))
        step()  # allocates Adam's state; compiles; compares bases with the library's
        gc.collect()
        steps[name] = step
        # A compiled step is not dispatched operation by operation: nothing could be counted.
        results[name] = {} if "compiled" in name else {"live_bytes": peak_bytes(step, alive())}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    for name in names:
        results[name]["seconds"] = statistics.median(times[name])
    return results


def resident(case: str, variant: str, arguments: Sequence[str]) -> float:
    """Growth of the resident memory of a fresh process in two steps, in bytes."""
    command = [sys.executable, "-m", "recipes.memory", "--case", case, "--alone", variant]
    command += arguments
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.strip().splitlines()[-1])


def alone(case: Case, variant: str) -> float:
    """What :func:`resident` runs."""
    step, _ = stepper(case, build(case, variant))
    return resident_peak(step)


def table(results: dict[str, Any]) -> str:
    """Markdown: one block a case."""
    lines = []
    for case, rows in results["cases"].items():
        kan, mlp = rows["KAN"], rows["MLP"]
        lines += [
            f"\n### {case}: {results['titles'][case]}\n",
            "| variant | peak, MB | of MLP | KAN / this | resident, MB | step, ms | of KAN |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            peak, rss = row.get("live_bytes"), row.get("resident_bytes")
            cells = [
                name,
                "-" if peak is None else f"{peak / 1e6:.2f}",
                "-" if peak is None else f"{peak / mlp['live_bytes']:.2f}",
                "-" if peak is None else f"{kan['live_bytes'] / peak:.1f}",
                "-" if rss is None else f"{rss / 1e6:.1f}",
                f"{row['seconds'] * 1e3:.1f}",
                f"{row['seconds'] / kan['seconds']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).lstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", choices=NAMES, action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="3 steps, no fresh processes")
    parser.add_argument("--compiled", action="store_true", help="torch.compile'd KAN as well")
    parser.add_argument(
        "--upstream", type=Path, help="folder with checkouts; default: the reference layers"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/memory"))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cases = make_cases(options.upstream)
    if options.alone:
        print(alone(cases[options.case[0]], options.alone))
        return
    passed = [] if options.upstream is None else ["--upstream", str(options.upstream)]
    passed += ["--threads", str(options.threads)]
    about = {
        "code": code_state(),
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
        "libraries": options.upstream is not None,
        "quick": options.quick,
    }
    results: dict[str, Any] = {"titles": {n: c.title for n, c in cases.items()}, "cases": {}}
    for name in options.case or NAMES:
        case = cases[name]
        names = variants(case, options.compiled)
        rows = measure(case, names, min(case.repeats, 3) if options.quick else case.repeats)
        if not options.quick:
            for variant in names:
                rows[variant]["resident_bytes"] = resident(name, variant, passed)
        results["cases"][name] = rows
        write_json(options.out / f"{name}.json", {**about, "title": case.title, "variants": rows})
        print(table({**results, "cases": {name: rows}}), flush=True)
    (options.out / "table.md").write_text(table(results))


if __name__ == "__main__":
    main()
