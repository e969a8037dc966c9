"""A streamed net's peak memory: linear in the batch, and the grid size does not matter.

Exact bytes of live tensors, which are the same on every machine. What a tile may take is set.
"""

import itertools
from pathlib import Path

import pytest
import torch

from recipes.memory_cases import Origins, spline_case
from recipes.memory_growth import PANELS, Panel, measure, plot
from recipes.memory_measure import stepper
from recipes.tracking import allocated_peak, peak_bytes

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")

SCRATCH = 100_000
WIDTHS = (32, 32, 32)
FLOAT = 4
CPU = torch.device("cpu")


def live(variant: str, grid: int = 5, batch: int = 64) -> int:
    case = spline_case(Origins(), WIDTHS, grid, batch, hidden=8)
    step, alive = stepper(case, variant, CPU)
    step()
    return peak_bytes(step, alive())


def test_linear_in_the_inputs_of_the_layers() -> None:
    batches = (500, 1000, 1500, 2000)
    peaks = [live(f"stream {SCRATCH}", batch=n) for n in batches]
    growth = [after - before for before, after in itertools.pairwise(peaks)]
    assert growth == pytest.approx([growth[0]] * 3, rel=0.02)
    # inputs of both layers, and at the end as much again for the loss and its gradients
    assert growth[0] <= 500 * 4 * sum(WIDTHS[:2]) * FLOAT
    kan = [live("KAN", batch=n) for n in batches[:2]]
    assert kan[1] - kan[0] > 8 * growth[0]


def test_independent_of_the_grid_size() -> None:
    grids = (5, 40)
    few, many = (live(f"stream {SCRATCH}", grid) for grid in grids)
    # what a larger grid adds: knots, and the last matrix of the meta-learner with Adam's state
    more = grids[1] - grids[0]
    static = FLOAT * more * (2 * WIDTHS[0] + 6 * (8 + 1))
    assert abs(many - few) <= static + SCRATCH
    few, many = (live("KAN", grid) for grid in grids)
    assert many - few > 20 * (static + SCRATCH)


def test_connections_cost_what_those_of_an_mlp_cost() -> None:
    def at(width: int, variant: str) -> int:
        case = spline_case(Origins(), (width,) * 3, 5, 32, hidden=8)
        step, alive = stepper(case, variant, CPU)
        step()
        return peak_bytes(step, alive())

    def growth(variant: str) -> int:
        return at(192, variant) - at(96, variant)

    assert growth(f"stream {SCRATCH}") <= growth("MLP") + 2 * SCRATCH
    assert growth("KAN") > 5 * growth("MLP")


@pytest.mark.parametrize("variant", ["KAN", "MLP", "materialize", "regenerate", "stream"])
def test_both_counts_agree(variant: str) -> None:
    case = spline_case(Origins(), WIDTHS, 5, 64, hidden=8)
    step, alive = stepper(case, variant, CPU)
    step()
    allocated, counted = allocated_peak(step, alive()), peak_bytes(step, alive())
    assert allocated == pytest.approx(counted, rel=1e-3)
    weights = sum(p.numel() for p in case.rival().parameters())
    assert counted > 4 * FLOAT * weights  # with gradients and two moments


def test_measured_and_drawn(tmp_path: Path) -> None:
    panels = {
        p.name: measure(Panel(p.name, p.label, ((4, 5, 8), (8, 5, 8)), 4), Origins(), CPU)
        for p in PANELS
    }
    assert panels["connections"]["KAN"][0][0] == 2 * 4 * 4
    assert panels["connections"]["KAN"][1][1] > panels["connections"]["KAN"][0][1] > 0
    for name in ("a.svg", "b.svg"):
        plot(panels, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "converted, streamed" in (tmp_path / "a.svg").read_text()
