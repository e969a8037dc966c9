"""Numbers that the paper prints: ``paper.csv``, one row a cell and model of Tables 2 to 9.

Source: *Improving Memory Efficiency for Training KANs via Meta Learning* (ICML 2025). ``rule`` says
whether the printed count follows from what the cell itself says (``label``), only from other
sizes than those (``other``), or from nothing that we found (empty); ``dim_z``, ``clusters``,
``hidden`` and ``bias`` are the sizes of the meta-learners that the count needs.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Cell", "cell", "cells"]


@dataclass(frozen=True)
class Cell:
    """One printed cell; ``row`` and ``model`` together name it.

    Attributes:
        parameters, value, std: as printed; None where the cell has no value, the table no spread.
        metric: what ``value`` is.
        widths: of fully connected models in Tables 2, 4 and 8, else empty.
        dim_w: coefficients of an edge.
        dim_z, clusters, hidden, bias: of the meta-learners; None for plain models and where no
            rule was found.
        rule: see the module.
    """

    row: str
    model: str
    parameters: int
    metric: str
    value: float | None
    std: float | None
    widths: tuple[int, ...]
    dim_w: int
    dim_z: int | None
    clusters: int | None
    hidden: int | None
    bias: bool | None
    rule: str

    @property
    def convert(self) -> dict[str, Any]:
        """Arguments of ``kanmeta.convert`` that give the printed count.

        Raises:
            ValueError: the cell is of a plain model, or no rule gives its count.
        """
        if self.hidden is None:
            raise ValueError(f"{self.row} of {self.model}: the count gives no meta-learner")
        return {
            "clusters": self.clusters or 1,
            "dim_z": self.dim_z or 1,
            "hidden": self.hidden,
            "bias": bool(self.bias),
        }


@cache
def cells() -> dict[tuple[str, str], Cell]:
    """All cells by row and model."""
    with (Path(__file__).parent / "paper.csv").open(newline="") as file:
        found = [_cell(record) for record in csv.DictReader(file)]
    return {(cell.row, cell.model): cell for cell in found}


def cell(row: str, model: str) -> Cell:
    """The cell of ``model`` in ``row``, such as ``T5|MNIST|32|G5`` and ``MetaKAN``.

    Raises:
        KeyError: the paper prints none.
    """
    return cells()[row, model]


def _cell(record: dict[str, str]) -> Cell:
    def whole(name: str) -> int | None:
        return int(record[name]) if record[name] else None

    return Cell(
        row=record["row"],
        model=record["model"],
        parameters=int(record["parameters"]),
        metric=record["metric"],
        value=float(record["value"]) if record["value"] else None,
        std=float(record["std"]) if record["std"] else None,
        widths=tuple(map(int, record["structure"].split("-"))) if record["structure"] else (),
        dim_w=int(record["dim_w"]),
        dim_z=whole("dim_z"),
        clusters=whole("clusters"),
        hidden=whole("hidden"),
        bias=record["bias"] == "yes" if record["bias"] else None,
        rule=record["rule"],
    )
