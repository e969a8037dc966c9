"""What fitting coefficients needs beside them: a little for each edge, and blocks."""

from pathlib import Path

import pytest
import torch

import kanmeta
from kanmeta import code_fit, code_stage, edge_search, linear_code
from kanmeta.transfer import put_all
from recipes.tracking import peak_bytes
from tests.cases import kan

HIDDEN, DIM_W = 128, 9


def peak(edges: int) -> int:
    """Most bytes alive at once while the code of a layer of so many edges is found."""
    model = kanmeta.convert(kan(edges // 10, 10), dim_z=1, hidden=HIDDEN)
    (binding,) = kanmeta.access.complete_layers(model).values()
    w = torch.randn(edges, DIM_W, generator=torch.Generator().manual_seed(0))

    def fit() -> None:
        generator = torch.Generator().manual_seed(0)
        coded = code_stage.linear([binding], [w], None)
        code_stage.fit(coded, [w], 4, generator, lambda: None)
        put_all(code_stage.values([binding], coded))
        code_stage.layer_error(binding, w)

    return peak_bytes(fit, [w, *model.parameters()])


def test_memory_grows_by_a_few_numbers_an_edge_however_wide_the_meta_learner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_code, "_BLOCK", 1000)
    monkeypatch.setattr(code_fit, "_SAMPLE", 1000)
    monkeypatch.setattr(edge_search, "GRID", {1: 16})
    small, large = 40_000, 80_000
    grown = (peak(large) - peak(small)) / (large - small)  # bytes an edge, its coefficients too
    floats = grown / 4 - DIM_W
    assert 1 <= floats <= 8, floats  # prompts, codes before and after; not 128 hidden units


def test_a_block_of_edges_needs_no_hidden_layer_for_each_coefficient() -> None:
    """Derivatives of 9 coefficients by 4 numbers, 128 hidden units: 36 numbers an edge, not 1152"""
    meta = kanmeta.MetaLearner(4, HIDDEN, DIM_W)
    u, x = torch.randn(2000, 4), torch.randn(2000, DIM_W)
    needed = peak_bytes(lambda: edge_search._newton(meta, u, x, rounds=1), [u, x])
    assert needed / 4 / len(u) < 4 * HIDDEN


def peak_of_load(edges: int, folder: Path) -> int:
    """Most bytes alive at once while a file of 4-bit codes becomes a model."""
    path = folder / f"{edges}.safetensors"
    kanmeta.save(kanmeta.convert(kan(edges // 10, 10), hidden=8), path, prompt_bits=4)
    assert path.stat().st_size < edges
    model = kan(edges // 10, 10)
    return peak_bytes(lambda: kanmeta.load(model, path), [*model.parameters(), *model.buffers()])


def test_loading_codes_needs_less_than_the_plain_coefficients(tmp_path: Path) -> None:
    """They are alive beforehand; prompts, codes and their indices come on top, and no more."""
    small, large = 8_000, 24_000
    grown = (peak_of_load(large, tmp_path) - peak_of_load(small, tmp_path)) / (large - small)
    assert 4 <= grown - 4 * (DIM_W + 1) <= 24, grown  # kan has a spline_scaler, and knots
