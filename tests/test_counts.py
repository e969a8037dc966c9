"""Parameter counts printed in the paper, rebuilt with real models.

``paper_counts.csv``: every count of Tables 3, 5, 6, 7, 8 and 9 of MetaKAN (ICML 2025) that follows
from the cell's own label. Frozen RBF grids are counted in Tables 3, 6 and 9. Of WavKAN the unused
``weight1`` is not counted.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import nn

import kanmeta
from recipes.reference import wav_kan
from recipes.reference.conv_fast_kan import FastKANConv2DLayer
from recipes.reference.conv_gram import KAGNConv2DLayer
from recipes.reference.conv_kan import KANConv2DLayer
from recipes.reference.conv_net import CHANNELS, STRIDES, ConvNet
from recipes.reference.conv_poly import KALNConv2DLayer
from recipes.reference.efficient_kan import KAN
from recipes.reference.fast_kan import FastKAN

_TABLE = (Path(__file__).parent / "paper_counts.csv").read_text()
ROWS = list(csv.DictReader(_TABLE.splitlines()))
INPUTS = {"SVHN": 2352, "CIFAR-10": 2352, "CIFAR-100": 2352}  # colour images at 28 x 28
CLASSES = {"CIFAR-100": 100}
WAVELETS = {"DoG": "dog", "Morlet": "morlet", "MexicanHat": "mexican_hat"}
CONVOLUTIONS = {
    "KANConv": KANConv2DLayer,
    "FastKANConv": FastKANConv2DLayer,
    "KALNConv": KALNConv2DLayer,
    "KAGNConv": KAGNConv2DLayer,
}
COUNTS_FROZEN = ("T3", "T6", "T9")


def build(row: Mapping[str, str]) -> nn.Module:
    table, *label = row["row"].split("|")
    meta, kind = row["model"].startswith("Meta"), row["model"].removeprefix("Meta")
    if table == "T8":  # [d, 32, 32, 32, 1], no output bias
        sizes = [int(label[1].removesuffix("D")), 32, 32, 32, 1]
        return KAN(sizes, grid_size=5, enable_standalone_scale_spline=False)
    if kind in CONVOLUTIONS:
        depth, data = (8, "CIFAR-100") if table == "T9" else (int(label[0][0]), label[1])
        return ConvNet(
            CONVOLUTIONS[kind],
            inputs=1 if data == "MNIST" else 3,
            classes=CLASSES.get(data, 10),
            channels=CHANNELS[depth],
            strides=STRIDES[depth],
            norm_layer=nn.BatchNorm2d,
        )
    data, structure, basis = label
    sizes = [INPUTS.get(data, 784), *map(int, structure.split(",")), CLASSES.get(data, 10)]
    if table == "T7":
        return wav_kan.KAN(sizes, WAVELETS[basis], unused_weight=meta)  # dropped in conversion
    number = int(basis[1:])
    if table == "T5":  # the plain KAN has one bias per output node, the MetaKAN has none
        return KAN(sizes, grid_size=number, enable_standalone_scale_spline=False, bias=not meta)
    return FastKAN(sizes, num_grids=number, base_bias=not meta)


def convert(model: nn.Module, row: Mapping[str, str]) -> None:
    clusters: int | list[list[str]] = int(row["clusters"])
    if clusters == 7:
        # The 8 layers have 6 numbers of output channels, so k-means cannot find 7 clusters of them.
        names = [layer.name for layer in kanmeta.plan(model).layers]
        clusters = [*([name] for name in names[:6]), names[6:]]
    kanmeta.convert(
        model,
        clusters=clusters,
        dim_z=int(row["dim_z"]),
        hidden=int(row["hidden"]),
        bias=row["bias"] == "yes",
        drop_dead=True,
        init="paper",  # the quicker one
    )
    assert {z.shape[-1] for z in kanmeta.prompts(model).values()} == {int(row["dim_z"])}
    metas = kanmeta.meta_learners(model).values()
    assert len(metas) == int(row["clusters"])
    assert {m.dim_w for m in metas} == {int(row["dim_w"])}


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 287
    kinds = {"KAN", "FastKAN", "WavKAN", *CONVOLUTIONS}
    assert {row["model"] for row in ROWS} == kinds | {f"Meta{kind}" for kind in kinds}


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['row']}|{r['model']}")
def test_count(row: dict[str, str]) -> None:
    model = build(row)
    if row["model"].startswith("Meta"):
        convert(model, row)
    counted = [
        p for p in model.parameters() if p.requires_grad or row["row"].startswith(COUNTS_FROZEN)
    ]
    assert sum(p.numel() for p in counted) == int(row["parameters"])
