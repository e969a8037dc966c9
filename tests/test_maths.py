"""The pure parts: layouts, clusters, the meta-learner, first values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kanmeta import clusters, initialise, layout
from kanmeta.errors import LayoutError, PlanError
from kanmeta.meta import ACTIVATIONS, MetaLearner

SIZES = st.integers(1, 4)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[str, tuple[str, ...], dict[str, int]]:
    """Any layout over o, i, k, kh, kw: a permutation of the axes, neighbours merged at random."""
    axes = draw(st.permutations(["o", "i", "k", *draw(st.sampled_from([[], ["kh", "kw"]]))]))
    parts, rest = [], list(axes)
    while rest:
        n = draw(st.integers(1, min(3, len(rest))))
        parts.append(rest[0] if n == 1 else f"({' '.join(rest[:n])})")
        rest = rest[n:]
    edges = tuple(a for a in ("o", "i", "kh", "kw") if a in axes)
    if "kh" in axes and draw(st.booleans()):
        edges = ("o", "i")
    return " ".join(parts), edges, {axis: draw(SIZES) for axis in axes}


@given(layouts())
def test_rearranging_is_exact_both_ways_and_element_by_element(
    drawn: tuple[str, tuple[str, ...], dict[str, int]],
) -> None:
    pattern, edges, sizes = drawn
    r = layout.Rearrangement.of(pattern, edges, sizes)
    tensor = torch.arange(math.prod(sizes.values())).reshape(r.shape)
    w = r.to_edges(tensor)
    assert w.shape == (*(sizes[e] for e in edges), r.width)
    back = r.from_edges(w)
    assert torch.equal(back, tensor)
    assert back.is_contiguous()
    # Independent of einops: split every merged dimension, then index by axis name.
    split = tensor.reshape([sizes[a] for a in layout.axes(pattern)])
    rest = [a for a in layout.axes(pattern) if a not in edges]
    expected = split.permute([layout.axes(pattern).index(a) for a in (*edges, *rest)])
    assert torch.equal(w, expected.reshape(w.shape))


@given(layouts())
def test_sizes_are_solved_from_shapes(
    drawn: tuple[str, tuple[str, ...], dict[str, int]],
) -> None:
    pattern, _, sizes = drawn
    known = dict(list(sizes.items())[1:])
    shape = layout.shape(pattern, sizes)
    assert layout.solve({"w": (pattern, shape)}, known) == sizes
    with pytest.raises(LayoutError, match="dimensions"):
        layout.solve({"w": (pattern, (*shape, 2))}, known)


def test_contradictions_between_shapes_are_named() -> None:
    with pytest.raises(LayoutError, match=r"b: dimension \(i\) has size 4, expected 3"):
        layout.solve({"a": ("o i", (2, 3)), "b": ("i t", (4, 5))})
    with pytest.raises(LayoutError, match="not a multiple of 3"):
        layout.solve({"a": ("o i", (2, 3)), "b": ("o (i k)", (2, 10))})
    with pytest.raises(LayoutError, match="cannot be told"):
        layout.solve({"b": ("o (i k)", (2, 10))})
    assert layout.restrict("o (i k) kh", ("o", "i")) == "o i"
    assert layout.restrict("o (k i h)", ("i", "h")) == "(i h)"


# --- clusters ---------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([8, 16, 32, 64, 512]), min_size=1, max_size=9), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_every_cluster_is_used_and_numbered_by_its_first_layer(
    sizes: list[int], wanted: int
) -> None:
    names = [f"l{i}" for i in range(len(sizes))]
    labels, notes = clusters.assign(wanted, names, ["kind"] * len(sizes), sizes)
    used = min(wanted, len(set(sizes)))
    assert list(dict.fromkeys(labels)) == list(range(used))
    assert bool(notes) == (used < wanted)
    for a, la in zip(sizes, labels, strict=True):
        for b, lb in zip(sizes, labels, strict=True):
            assert a != b or la == lb


def test_the_papers_eight_layer_example() -> None:
    """Output channels of the 8-layer conv net (Table 9): six distinct values, so C = 7 gives 6."""
    sizes = [16, 32, 64, 128, 256, 256, 512, 512]
    names = [str(i) for i in range(8)]
    three, _ = clusters.assign(3, names, ["k"] * 8, sizes)
    assert three == [0, 0, 0, 0, 1, 1, 2, 2]
    seven, notes = clusters.assign(7, names, ["k"] * 8, sizes)
    assert max(seven) + 1 == 6
    assert "7 clusters asked for, 6 used" in notes[0]


def test_kinds_are_never_mixed() -> None:
    labels, notes = clusters.assign(1, ["a", "b", "c"], ["x", "y", "x"], [4, 4, 4])
    assert labels == [0, 1, 0]
    assert "never share" in notes[0]
    assert clusters.assign("layer", ["a", "b"], ["x", "x"], [4, 4])[0] == [0, 1]
    with pytest.raises(PlanError, match="cannot share"):
        clusters.assign([["a", "b"]], ["a", "b"], ["x", "y"], [4, 4])
    assert clusters.assign({"b": "q", "a": "p"}, ["a", "b"], ["x", "x"], [4, 4])[0] == [0, 1]
    with pytest.raises(PlanError, match="Did you mean 'alpha'"):
        clusters.assign([["alpah"]], ["alpha"], ["x"], [4])
    for bad in (0, True, "all", ["a"], 1.5):
        with pytest.raises(PlanError, match="clusters="):
            clusters.assign(bad, ["a"], ["x"], [4])  # type: ignore[arg-type]


# --- meta-learner and first values --------------------------------------------------------------


def random_meta(dim_z: int, hidden: int, dim_w: int, activation: str, bias: bool) -> MetaLearner:
    meta = MetaLearner(dim_z, hidden, dim_w, activation, bias).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in meta.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return meta


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.booleans(),
)
@settings(deadline=None)
def test_meta_learner_is_the_two_layer_formula(
    dim_z: int, hidden: int, dim_w: int, activation: str, bias: bool
) -> None:
    """Also the case that takes a shortcut (one number, relu, no bias), and its gradients."""
    meta = random_meta(dim_z, hidden, dim_w, activation, bias)
    z = torch.randn(7, dim_z, dtype=torch.float64).requires_grad_()
    scale, offset = torch.rand(dim_w).double() + 0.5, torch.rand(dim_w).double()
    inner = z @ meta.weight1.T + (0 if meta.bias1 is None else meta.bias1)
    raw = ACTIVATIONS[activation](inner) @ meta.weight2.T
    raw = raw if meta.bias2 is None else raw + meta.bias2
    torch.testing.assert_close(meta(z), raw)
    expected, actual = raw * scale + offset, meta(z, scale, offset)
    torch.testing.assert_close(actual, expected)
    inputs = [z, *meta.parameters()]
    probe = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, inputs, probe),
        torch.autograd.grad(expected, inputs, probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("hidden", [1, 2, 7])
def test_without_biases_two_hidden_units_do_what_all_do(hidden: int) -> None:
    """The shortcut for one number, relu and no bias, at zero and on both sides of it."""
    meta = random_meta(1, hidden, 3, "relu", False)
    z = torch.tensor([-1.5, -0.1, 0.0, 0.2, 2.0], dtype=torch.float64)[:, None].requires_grad_()
    expected, actual = torch.relu(z @ meta.weight1.T) @ meta.weight2.T, meta(z)
    torch.testing.assert_close(actual, expected)
    inputs, probe = [z, meta.weight1, meta.weight2], torch.rand_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, inputs, probe),
        torch.autograd.grad(expected, inputs, probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@given(
    st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["random", "zero", "constant", "one slot constant"]),
)
@settings(deadline=None)
def test_match_never_gives_nan_and_matches(
    shapes: list[tuple[int, int]], dim_z: int, bias: bool, content: str
) -> None:
    widths, generator = (1, 4), torch.Generator().manual_seed(1)
    w = [torch.randn(*s, 5, generator=generator, dtype=torch.float64) + 2 for s in shapes]
    if content != "random":
        w = [t.clone() for t in w]
        for t in w:
            t[..., : 1 if "slot" in content else 5] = 0.0 if content == "zero" else 1.0
    meta = MetaLearner(dim_z, 6, 5, "relu", bias).double()
    fan_ins = [s[1] for s in shapes]
    values = initialise.draw("match", meta, w, widths, fan_ins, generator)
    for original, v in zip(w, values, strict=True):
        ours = meta(v.prompts, v.scale, v.offset)
        assert torch.isfinite(ours).all()
        assert (v.scale > 0).all()  # every slot can still move
        for a, b in zip(ours.split(widths, -1), original.split(widths, -1), strict=True):
            torch.testing.assert_close(a.mean(), b.mean())
            if original[..., 0].numel() > 1 and b.std(correction=0) > 0:
                torch.testing.assert_close(a.std(correction=0), b.std(correction=0))


def test_paper_is_xavier_with_zero_biases() -> None:
    generator = torch.Generator().manual_seed(0)
    meta = MetaLearner(1, 256, 9)
    w = [torch.randn(100, 300, 9, generator=generator)]
    (v,) = initialise.draw("paper", meta, w, (1, 8), [300], generator)
    assert v.prompts.std().item() == pytest.approx(math.sqrt(2 / 30001), rel=0.02)
    assert meta.weight1.std().item() == pytest.approx(math.sqrt(2 / 257), rel=0.15)
    assert meta.weight2.std().item() == pytest.approx(math.sqrt(2 / 265), rel=0.1)
    assert (v.scale == 1).all()
    assert (v.offset == 0).all()
    assert meta.bias1 is not None
    assert not meta.bias1.any()


@pytest.mark.parametrize("hidden", [2, 5, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_match_starts_with_an_odd_meta_learner(hidden: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    meta = MetaLearner(2, hidden, 5, "relu", bias).double()
    w = [torch.randn(6, 7, 5, generator=generator, dtype=torch.float64)]
    initialise.draw("match", meta, w, (1, 4), [7], generator)
    z = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    assert meta(z).abs().min() > 0
    torch.testing.assert_close(meta(-z), -meta(z))
