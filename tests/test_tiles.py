"""The arithmetic of tiles, and what they are made of, against plain torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import kanmeta
from kanmeta import conv_cut, tiling
from kanmeta.functions import elementwise
from kanmeta.passes import Functions, Pass, Wanted
from kanmeta.pieces import find
from kanmeta.scratch import Scratch
from kanmeta.splines import splines
from kanmeta.tiles import dense, way_of
from recipes.reference.conv_kan import KANConv2DLayer
from recipes.tracking import peak_bytes
from tests.cases import kan

numbers = st.floats(width=32, allow_nan=False)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(numbers, max_size=80), st.lists(numbers, min_size=1, max_size=40))
def test_pieces_are_those_of_bucketize(bounds: list[float], extra: list[float]) -> None:
    edges = torch.tensor([*bounds, -torch.inf, torch.inf], dtype=torch.float32).sort().values
    z = torch.tensor([*bounds, *extra, torch.inf, -torch.inf], dtype=torch.float32)
    z = torch.cat([z, torch.linspace(-3, 3, 9000)])  # few numbers are bisected
    assert torch.equal(find(edges, z).long(), torch.bucketize(z, edges))


def test_close_bounds_and_neighbours_are_told_apart() -> None:
    at = torch.linspace(-1, 1, 33).double()
    bounds = torch.cat([at, torch.nextafter(at, at - 1)]).sort().values
    z = torch.cat([bounds, torch.nextafter(bounds, bounds + 1), torch.randn(1000).double()])
    z = torch.cat([z, torch.randn(9000).double()])
    assert torch.equal(find(bounds, z).long(), torch.bucketize(z, bounds))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.integers(1, 3000)] * 3),
    st.integers(1, 60),
    st.integers(0, 60),
    st.integers(1, 400),
    st.integers(1, 2_000_000),
)
def test_tiles_fit_the_budget(
    sizes: tuple[int, int, int], edge: int, gradient: int, value: int, budget: int
) -> None:
    problem = tiling.Problem(*sizes, an_edge=edge, gradient=gradient, a_value=value, functions=9)
    cut = tiling.cut(problem, budget)
    edge += gradient if cut.rows < sizes[0] else 0
    taken = cut.columns * (cut.rows * value + cut.outputs * edge)
    assert taken <= budget or (cut.rows, cut.columns, cut.outputs) == (1, 1, 1)
    assert cut.rows <= sizes[0]
    assert cut.columns <= sizes[1]
    assert cut.outputs <= sizes[2]


@pytest.mark.parametrize("number", [5, 60])
@pytest.mark.parametrize("even", [True, False])
def test_values_and_slopes_of_splines(number: int, even: bool) -> None:
    """What is written in place, and the slope pulled back, are those of the recursion."""
    knots = torch.linspace(-2, 2, number + 7, dtype=torch.float64).repeat(3, 1)
    if not even:
        knots = knots.clone()
        knots[1, 4] += 0.01
    functions = splines(knots, 3)
    x = torch.linspace(-2.5, 2.5, 3 * 50, dtype=torch.float64).view(50, 3).requires_grad_()
    expected, _ = functions(x, slice(0, 3))
    weights = torch.randn(50, number + 3, 3, dtype=torch.float64)
    (slope,) = torch.autograd.grad(expected, x, weights)
    out = torch.full_like(weights, torch.nan)
    values, pull = functions(x.detach(), slice(0, 3), out, Scratch(out))
    torch.testing.assert_close(values, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pull(weights.clone()), slope, rtol=1e-9, atol=1e-11)
    inside = expected[(x.detach().abs().max(1).values < 0.5)]
    torch.testing.assert_close(inside.sum(1), torch.ones_like(inside[:, 0]))


def test_buffers_are_used_again() -> None:
    scratch = Scratch(torch.zeros(1))
    a = scratch.take("a", 3, 4)
    assert scratch.take("a", 4, 3).data_ptr() == a.data_ptr()
    assert scratch.take("b", 3, 4).data_ptr() != a.data_ptr()
    assert scratch.part(1).take("a", 3, 4).data_ptr() != a.data_ptr()
    assert scratch.take("a", 100).numel() == 100


@pytest.mark.parametrize(("hidden", "dim_z"), [(4, 1), (32, 1), (32, 2), (128, 2)])
@pytest.mark.parametrize(("grid_size", "uneven"), [(5, False), (5, True), (40, False), (40, True)])
def test_a_pass_takes_its_budget(grid_size: int, uneven: bool, hidden: int, dim_z: int) -> None:
    """What tiles take is what the arithmetic counts, whichever way splines are computed."""
    budget, rows, inputs, outputs = 400_000, 512, 96, 96
    knots = torch.linspace(-2, 2, grid_size + 7).repeat(inputs, 1)
    if uneven:
        knots[1, 4] += 0.01
    known = [elementwise(F.silu), splines(knots, 3)]
    functions = Functions(known, [1, grid_size + 3], [0, 0])
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, z, gy = normal(rows, inputs), normal(outputs, inputs, dim_z), normal(rows, outputs)
    width = grid_size + 4
    matrices = normal(hidden, dim_z), normal(hidden), normal(width, hidden), normal(width)
    way = way_of(matrices, "relu")

    def step() -> None:
        _, notes = Pass(functions, (x,), z, False, way, budget).forward(True)
        Pass(functions, (x,), z, False, way, budget, Wanted([True], True, False)).backward(
            gy, notes
        )

    alive = [x, z, gy, *matrices]
    results = x.nbytes + z.nbytes + gy.nbytes  # gradients, outputs
    results += z.numel() if dim_z == 1 else 0  # notes
    taken = peak_bytes(step, alive) - results - sum(t.nbytes for t in alive)
    assert 0.4 * budget < taken < 1.15 * budget


def test_tables_of_a_wide_meta_learner_leave_room_for_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They took more than the whole budget: tiles of one edge, and minutes a step."""
    cuts: list[tiling.Sizes] = []
    original = tiling.cut

    def cut(problem: tiling.Problem, numbers: int) -> tiling.Sizes:
        cuts.append(original(problem, numbers))
        assert cuts[-1].columns * cuts[-1].outputs > 100
        return cuts[-1]

    monkeypatch.setattr("kanmeta.passes.tiling.cut", cut)
    model = kanmeta.convert(kan(784, 32), hidden=1024, execution="stream")
    model(torch.ones(4, 784)).sum().backward()
    assert len(cuts) > 1


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_coefficients_are_the_same_whatever_the_blocks(activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (20, 2), (20,), (9, 20), (9,)
    matrices = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    z = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    gw = torch.randn(9, 50, generator=generator, dtype=torch.float64)
    found = []
    for numbers in (1_000_000, 49 * 20 * 3, 1):
        made = dense((matrices[0], matrices[1], matrices[2], matrices[3]), activation)
        assert made.reserve(numbers) >= numbers // 2
        scratch, sums = Scratch(z), made.sums()
        tile = made.tile(z, None, scratch)
        w = tile.w.clone()
        found.append([w, made.pull(tile, gw.clone(), sums, scratch).clone(), *sums])
        bare, sums = made.tile(z, None, scratch, whole=False), made.sums()
        bare.w.copy_(gw)  # convolutions write the gradient over the coefficients
        found.append([w, made.pull(bare, bare.w, sums, scratch).clone(), *sums])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim_z", [1, 2])
def test_hidden_units_leave_room_for_tiles_of_a_convolution(
    dim_z: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All hidden units of a tile's edges left room for single channels: ten times as slow."""
    cuts: list[conv_cut.Sizes] = []
    original = conv_cut.cut

    def cut(problem: conv_cut.Problem, numbers: int) -> conv_cut.Sizes:
        cuts.append(original(problem, numbers))
        return cuts[-1]

    monkeypatch.setattr("kanmeta.conv_pass.conv_cut.cut", cut)
    model = KANConv2DLayer(32, 64, spline_order=3, kernel_size=3, padding=1)
    model = kanmeta.convert(model, dim_z=dim_z, hidden=256, execution="stream")
    model(torch.ones(16, 32, 8, 8)).sum().backward()
    assert len(cuts) > 1
    assert all(sizes.channels > 2 for sizes in cuts)
