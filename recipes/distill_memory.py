"""How much memory distilling a layer of very many edges takes, and how long.

python -m recipes.distill_memory --edges 10000000
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence

import kanmeta
from recipes.reference.efficient_kan import KAN
from recipes.training import one_thread

__all__ = ["main"]

OUTPUTS = 1000
FIT_STEPS = 20  # on a sample of the edges; what takes long is one search for each of them


def peak() -> float:
    """Most resident memory of this process so far, MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.distill_memory", description=__doc__)
    parser.add_argument("--edges", type=int, default=10_000_000, help="a multiple of 1000")
    args = parser.parse_args(argv)
    widths = [args.edges // OUTPUTS, OUTPUTS]
    with one_thread():
        print(f"at the start: {peak():.0f} MB")
        teacher, student = (KAN(widths, enable_standalone_scale_spline=False) for _ in range(2))
        kanmeta.convert(student, dim_z=1, hidden=32)
        print(f"with teacher and student: {peak():.0f} MB")
        begin = time.perf_counter()
        report = kanmeta.distill(student, teacher, fit_steps=FIT_STEPS)
        print(f"distilled: {peak():.0f} MB, {time.perf_counter() - begin:.0f} s")
        print(report)


if __name__ == "__main__":
    main()
