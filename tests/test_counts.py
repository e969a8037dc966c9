"""Parameter counts printed in the paper, rebuilt with the models that the recipes build.

``recipes/paper.csv`` has every count of Tables 2 to 9 of MetaKAN (ICML 2025). Those that follow
from the cell's own label are tested, and the others where the recipe builds what the count needs.
Frozen RBF grids are counted in Tables 3, 6 and 9.
"""

from collections import Counter

import pytest
from torch import nn

import kanmeta
from recipes import functions, images_conv, images_fc, pde
from recipes.execute import model_of
from recipes.job import Job
from recipes.paper import Cell, cells

# The printed count counts something else than the cell's own network.
UNLIKE_THE_CELL = {
    # Meta-learner without the base weight, G = 7 instead of 10, the value of a cell with c = 6
    ("T5|SVHN|32|G3", "MetaKAN"),
    ("T5|SVHN|32|G10", "KAN"),
    ("T6|CIFAR-10|32|c13", "MetaFastKAN"),
    ("T7|SVHN|32,32|DoG", "WavKAN"),  # weight1, which is never used
}
BATCH_NORM_NOT_COUNTED = {
    cell.row
    for cell in cells().values()
    if cell.row.startswith("T7|") and cell.rule == "other" and cell.model == "MetaWavKAN"
}


def jobs() -> dict[tuple[str, str], Job]:
    """One job a cell, as the protocol ``paper`` builds it."""
    found = {}
    for recipe in (functions, images_conv, images_fc, pde):
        for job in recipe.grid("paper", "full"):
            if job.row:
                found.setdefault((job.row, job.model), job)
    return found


JOBS = jobs()


def possible_cells() -> list[Cell]:
    """Cells whose count a model can have."""
    found = []
    for key, cell in cells().items():
        table = cell.row[:2]
        # Table 2 with G = 20 counts 26 to 42 numbers an edge; f2 of Table 4 has 2n inputs there.
        possible = cell.rule == "other" and table in ("T3", "T4", "T5", "T6", "T7")
        possible &= key not in UNLIKE_THE_CELL
        possible &= not (cell.row.startswith("T4|f2") and cell.model == "KAN")
        if cell.rule == "label" or possible:
            found.append(cell)
    return found


def counted(model: nn.Module, cell: Cell) -> int:
    """What the paper counts of ``model`` in this table."""
    if cell.row.startswith("T4|") and cell.model == "MetaKAN":  # prompts and biases are left out
        return sum(p.numel() for m in kanmeta.meta_learners(model).values() for p in m.parameters())
    left_out = set()
    if cell.row in BATCH_NORM_NOT_COUNTED and cell.model == "MetaWavKAN":
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
        left_out = {p for norm in norms for p in norm.parameters()}
    frozen = cell.row.startswith(("T3", "T6", "T9"))
    return sum(
        p.numel() for p in model.parameters() if p not in left_out and (p.requires_grad or frozen)
    )


def test_every_cell_has_a_job() -> None:
    assert set(JOBS) == set(cells())
    assert len(cells()) == 410


def test_most_counts_are_possible_cells() -> None:
    assert Counter(cell.row[:2] for cell in possible_cells()) == {
        "T2": 13,
        "T3": 48,
        "T4": 30,
        "T5": 70,
        "T6": 71,
        "T7": 71,
        "T8": 17,
        "T9": 24,
    }


@pytest.mark.parametrize("cell", possible_cells(), ids=lambda c: f"{c.row}|{c.model}")
def test_count(cell: Cell) -> None:
    model = model_of(JOBS[cell.row, cell.model])
    assert counted(model, cell) == cell.parameters
    if cell.model.startswith("Meta"):
        assert {z.shape[-1] for z in kanmeta.prompts(model).values()} == {cell.dim_z or 1}
        metas = kanmeta.meta_learners(model).values()
        assert len(metas) == (cell.clusters or 1)
        assert {m.dim_w for m in metas} == {cell.dim_w}


def test_wider_converted_networks_have_no_more_parameters_than_the_kan() -> None:
    jobs = [j for j in functions.grid("fair", "cpu") if j.seed == 0 and j.row.endswith("|G5")]
    plain = {j.row: j for j in jobs if j.model == "KAN" and not j.variant}
    wider = {j.row: j for j in jobs if j.variant == "wider"}
    assert len(wider) == len(plain) == 17
    for row, job in wider.items():
        counts = [sum(p.numel() for p in model_of(j).parameters()) for j in (job, plain[row])]
        assert counts[0] <= counts[1], row
        pairs = zip(job.config["widths"], plain[row].config["widths"], strict=True)
        inner = list(pairs)[1:-1]
        assert all(wide > narrow for wide, narrow in inner), row
