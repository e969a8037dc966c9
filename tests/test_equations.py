"""The equations of Table 2 beside pykan's own."""

import contextlib
import importlib
import io
import warnings
from typing import Any

import pytest
import torch

from recipes.equations import EQUATIONS, points

# pykan's name for them is another, or is two equations', of which a number picks the first.
NAMES: dict[str, str | int] = {"I.6.20A": "I.6.20a", "I.6.20B": "I.6.20b", "I.18.4": 21}
DIMENSIONLESS = "I.9.18"  # nine variables in pykan


def pykans(name: str) -> tuple[Any, Any, list[list[float]]]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        feynman = importlib.import_module("kan.feynman")
        symbols, _, function, ranges = feynman.get_feynman_dataset(NAMES.get(name, name))
    return symbols, function, ranges


@pytest.mark.parametrize("name", sorted(set(EQUATIONS) - {DIMENSIONLESS}))
def test_formulas_and_ranges_are_pykans(name: str) -> None:
    pytest.importorskip("kan", reason="needs pip install pykan")
    symbols, function, ranges = pykans(name)
    dims = len(EQUATIONS[name].ranges)
    assert len(symbols) == dims
    if not isinstance(ranges[0], list):  # one for all variables
        ranges = [ranges] * dims
    torch.testing.assert_close(
        torch.tensor(EQUATIONS[name].ranges), torch.tensor([[float(v) for v in r] for r in ranges])
    )
    x, y = points(name, dims, 100, seed=0)
    torch.testing.assert_close(function(x).double(), y, rtol=1e-5, atol=1e-7)
