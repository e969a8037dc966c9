"""How a layer is cut in tiles: the arithmetic of memory and time, in one place.

A tile is a rectangle of rows, inputs ("columns") and outputs. Its coefficients take memory for each
input and output, its basis for each row and input; together they have to fit in the budget. What
a cut costs beside the arithmetic that every cut needs:

* calls: torch takes a few microseconds for an operation, however small;
* rests: operations on the inputs of a row take 32 at a time, and what is left one by one;
* a basis is evaluated again for every tile of outputs, unless one tile holds all rows;
* partial sums of the outputs are read and written once for every tile of inputs.

With a basis in which few functions are not 0, ``values`` counts all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Problem", "Sizes", "cost", "cut", "halves", "parts"]

# Seconds, measured on one core: a tile's share of Python and torch calls, one basis value, one
# number of a partial sum. Only their ratios matter.
_EDGES, _VALUES, _PRODUCTS = 60e-6, 80e-6, 20e-6
_A_VALUE, _A_SUM = 1.0e-9, 0.3e-9
_VECTOR, _A_REST = 32, 1.7  # numbers at a time, and how much longer one of a rest takes


@dataclass(frozen=True)
class Problem:
    """What is to be cut.

    Attributes:
        rows, inputs, outputs: of the layer.
        an_edge: numbers that are alive for one edge of a tile.
        gradient: further ones, unless one tile holds all rows.
        a_value: numbers that are alive for one row and input of a tile.
        functions: of the basis.
    """

    rows: int
    inputs: int
    outputs: int
    an_edge: int
    gradient: int
    a_value: int
    functions: int


@dataclass(frozen=True)
class Sizes:
    """Of a tile."""

    rows: int
    columns: int
    outputs: int


@lru_cache(maxsize=1024)  # as long as a step of a small layer
def cut(problem: Problem, numbers: int) -> Sizes:
    """Cheapest tiles of at most ``numbers`` numbers, or of one row, input and output."""
    candidates = [
        Sizes(rows, columns, outputs)
        for rows in halves(problem.rows)
        for outputs in halves(problem.outputs)
        if (most := numbers // _column(problem, rows, outputs)) > 0
        for columns in (_even(problem.inputs, most), _even(problem.inputs, most, _VECTOR))
    ]
    return min(candidates, key=lambda s: cost(problem, s)) if candidates else Sizes(1, 1, 1)


def parts(tensor: Tensor, size: int, axis: int) -> tuple[Tensor, ...]:
    """Parts of ``tensor`` along ``axis``, in one call, which is cheaper than slicing each."""
    return (tensor,) if tensor.shape[axis] <= size else torch.split(tensor, size, axis)


def cost(problem: Problem, sizes: Sizes) -> float:
    """Seconds, roughly, that this cut costs beside what every cut costs."""
    over_rows = -(-problem.rows // sizes.rows)
    over_columns = -(-problem.inputs // sizes.columns)
    over_outputs = -(-problem.outputs // sizes.outputs)
    evaluations = 1 if over_rows == 1 else over_outputs
    rest = sizes.columns % _VECTOR
    length = problem.inputs * (1 + (_A_REST - 1) * rest / sizes.columns)
    values = problem.rows * length * problem.functions * evaluations
    return (
        over_columns * over_outputs * _EDGES
        + over_columns * over_rows * (evaluations * _VALUES + over_outputs * _PRODUCTS)
        + values * _A_VALUE
        + over_columns * problem.rows * problem.outputs * _A_SUM
    )


def _column(problem: Problem, rows: int, outputs: int) -> int:
    """Numbers that one input of a tile takes."""
    an_edge = problem.an_edge + (problem.gradient if rows < problem.rows else 0)
    return rows * problem.a_value + outputs * an_edge


def halves(number: int) -> Iterator[int]:
    """``number``, half of it, and so on to 1."""
    number = max(number, 1)
    while number > 1:
        yield number
        number = -(-number // 2)
    yield 1


def _even(number: int, most: int, multiple: int = 1) -> int:
    """Size of about equal parts of ``number``, at most ``most``; a multiple if that allows."""
    number, most = max(number, 1), most // multiple * multiple or most
    size = -(-number // -(-number // most))
    return min(most, number, -(-size // multiple) * multiple)
