"""Parameter counts printed in the paper, rebuilt with real models.

``paper_counts.csv``: every count of Tables 5, 6 and 8 of MetaKAN (ICML 2025) that follows from the
cell's own label. Table 5 and 8 count trainable parameters, Table 6 the frozen RBF grids too.
"""

import csv
from pathlib import Path

import pytest
from torch import nn

import kanmeta
from recipes.reference.efficient_kan import KAN
from recipes.reference.fast_kan import FastKAN

_TABLE = (Path(__file__).parent / "paper_counts.csv").read_text()
ROWS = list(csv.DictReader(_TABLE.splitlines()))
INPUTS = {"SVHN": 2352, "CIFAR-10": 2352, "CIFAR-100": 2352}  # colour images at 28 x 28
CLASSES = {"CIFAR-100": 100}


def build(row: dict[str, str]) -> nn.Module:
    table, data, structure, *grid = row["row"].split("|")
    meta = row["model"].startswith("Meta")
    if table == "T8":  # [d, 32, 32, 32, 1], no output bias
        sizes = [int(structure.removesuffix("D")), 32, 32, 32, 1]
        return KAN(sizes, grid_size=5, enable_standalone_scale_spline=False)
    sizes = [INPUTS.get(data, 784), *map(int, structure.split(",")), CLASSES.get(data, 10)]
    number = int(grid[0][1:])
    if table == "T5":  # the plain KAN has one bias per output node, the MetaKAN has none
        return KAN(sizes, grid_size=number, enable_standalone_scale_spline=False, bias=not meta)
    return FastKAN(sizes, num_grids=number, base_bias=not meta)


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 158
    assert {row["model"] for row in ROWS} == {"KAN", "MetaKAN", "FastKAN", "MetaFastKAN"}


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['row']}|{r['model']}")
def test_count(row: dict[str, str]) -> None:
    model = build(row)
    if row["model"].startswith("Meta"):
        kanmeta.convert(
            model,
            clusters=int(row["clusters"]),
            dim_z=int(row["dim_z"]),
            hidden=int(row["hidden"]),
            bias=row["bias"] == "yes",
        )
        assert {z.shape[-1] for z in kanmeta.prompts(model).values()} == {int(row["dim_z"])}
        metas = kanmeta.meta_learners(model).values()
        assert {m.dim_w for m in metas} == {int(row["dim_w"])}
    frozen_count = row["row"].startswith("T6")
    counted = [p for p in model.parameters() if p.requires_grad or frozen_count]
    assert sum(p.numel() for p in counted) == int(row["parameters"])
