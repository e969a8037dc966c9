"""Grid updates and moved edges are exact on prompts, or an error names the remedy."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kanmeta
from kanmeta import edits, errors
from recipes.reference import efficient_kan
from tests.cases import CASES, Case

UPDATES = {"efficient-kan": "update_grid", "pykan": "update_grid_from_samples"}
GRIDS = [case for case in CASES if case.adapter in UPDATES]
grid_cases = pytest.mark.parametrize("case", GRIDS, ids=lambda c: c.name)


def converted_pair(case: Case, dim_z: int) -> tuple[nn.Module, nn.Module]:
    """A converted model, and the library's own with the same coefficients."""
    model = case.model()
    case.convert(model, dim_z=dim_z)
    return model, kanmeta.materialize(copy.deepcopy(model))


def update(case: Case, model: nn.Module, x: Tensor) -> None:
    """Update the grids of both layers with the inputs they get."""
    method = UPDATES[case.adapter]
    for name in case.layers:
        layer = model.get_submodule(name)
        getattr(layer, method)(x)
        x = case.output(layer(x)).detach()


@grid_cases
@pytest.mark.parametrize("dim_z", [1, 2, 9])
@pytest.mark.filterwarnings("ignore")  # pykan's own
def test_grid_updates_are_exact(case: Case, dim_z: int) -> None:
    model, plain = converted_pair(case, dim_z)
    prompts = {name: z.clone() for name, z in kanmeta.prompts(model).items()}
    grids = [model.get_submodule(name).grid.clone() for name in case.layers]
    for seed in (3, 4):  # a second update starts from the first one's map
        x = case.x(400, seed=seed)
        update(case, model, x)
        update(case, plain, x)
        for name in case.layers:
            ours, theirs = model.get_submodule(name), plain.get_submodule(name)
            torch.testing.assert_close(ours.grid, theirs.grid, rtol=0, atol=1e-12)
        torch.testing.assert_close(case.run(model, x), case.run(plain, x), rtol=0, atol=1e-8)
    assert not any(
        torch.allclose(model.get_submodule(n).grid, g)
        for n, g in zip(case.layers, grids, strict=True)
    )
    for name, z in kanmeta.prompts(model).items():
        assert torch.equal(z, prompts[name])  # the map moved, not the prompts


@grid_cases
@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_after_a_grid_update(case: Case) -> None:
    """T is exact for all coefficients, not only for those that it was made with."""
    model, _ = converted_pair(case, 2)
    x = case.x(400)
    update(case, model, x)
    with torch.no_grad():
        for z in kanmeta.prompts(model).values():
            z.add_(torch.randn(z.shape, generator=torch.Generator().manual_seed(9)).to(z))
    late = copy.deepcopy(model)  # other prompts, then the map
    early = case.model()
    case.convert(early, dim_z=2)  # the same prompts under the first grid, then the update
    early.load_state_dict(
        {k: v for k, v in late.state_dict().items() if "grid" not in k and "_map" not in k},
        strict=False,
    )
    plain = kanmeta.materialize(early)
    first = case.layers[0]
    getattr(plain.get_submodule(first), UPDATES[case.adapter])(x)
    y = case.output(late.get_submodule(first)(x))
    torch.testing.assert_close(y, case.output(plain.get_submodule(first)(x)), rtol=0, atol=1e-8)
    case.run(late, x).sum().backward()
    assert all(z.grad.isfinite().all() for z in kanmeta.prompts(late).values())


@grid_cases
@pytest.mark.filterwarnings("ignore")
def test_the_map_survives_copies_files_and_state_dicts(case: Case, tmp_path: object) -> None:
    model, _ = converted_pair(case, 1)
    x = case.x(400)
    update(case, model, x)
    with torch.no_grad():  # what pykan keeps of a pass with gradients cannot be copied
        expected = case.run(model, x)
    assert torch.equal(case.run(copy.deepcopy(model), x), expected)
    if case.pickles:
        assert torch.equal(case.run(pickle.loads(pickle.dumps(model)), x), expected)
    path = f"{tmp_path}/model.safetensors"
    kanmeta.save(model, path)
    loaded = kanmeta.load(case.model(seed=5), path)
    assert torch.equal(case.run(loaded, x), expected)
    fresh = case.convert(case.model(seed=6), dim_z=1)
    without_map = copy.deepcopy(fresh.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(case.run(fresh, x), expected)
    fresh.load_state_dict(without_map)
    assert fresh.get_submodule(case.layers[0]).coefficient_map is None
    assert torch.equal(case.run(kanmeta.materialize(model), x), expected)


class KANLinear(efficient_kan.KANLinear):
    """Its grid update does what a library's does when a solver fails."""

    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        self.grid.copy_(self.grid + 1)
        self.spline_weight.data = self.spline_weight * x.mean() / (x.max() - x.min())


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "pass more of them, such that differ"), (torch.nan, "diverged")]
)
def test_a_grid_update_that_fails_changes_nothing(value: float, text: str) -> None:
    layer = KANLinear(20, 30)
    kanmeta.convert(layer)
    state = copy.deepcopy(layer.state_dict())
    with pytest.raises(errors.CoefficientWriteError, match=text):
        layer.update_grid(torch.full((50, 20), value))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, state[name])
    layer.update_grid(torch.rand(50, 20))  # the advice
    assert torch.equal(layer.grid, state["grid"] + 1)


def test_the_bug_of_efficient_kans_update_with_a_scaler_is_not_copied() -> None:
    """The library fits the scaled curves and stores them unscaled: the function changes."""
    from tests import upstream

    layer = upstream.efficient_kan().KANLinear(4, 5).double()
    x = torch.rand(400, 4, dtype=torch.float64) * 1.8 - 0.9
    kanmeta.convert(layer, hidden=4, bias=False)
    expected = layer(x)
    layer.update_grid(x)
    change = (layer(x) - expected).norm() / expected.norm()
    plain = upstream.efficient_kan().KANLinear(4, 5).double()
    expected = plain(x)
    plain.update_grid(x)
    assert change < 0.1 * (plain(x) - expected).norm() / expected.norm()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_moved_edges_are_found_again(data: st.DataObject) -> None:
    """Any outputs and inputs, in any order, any number of times; duplicates stay consistent."""
    old_shape = [data.draw(st.integers(1, 4)) for _ in range(2)]
    output_axis = data.draw(st.integers(0, 1))
    w = torch.randint(0, data.draw(st.sampled_from([2, 1000])), (*old_shape, 3)).double()
    rows = [data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5)) for n in old_shape]
    new = w[rows[0]][:, rows[1]]
    moved = edits.moved_edges(new, w, output_axis)
    assert moved is not None
    assert torch.equal(w.reshape(-1, 3)[moved.source], new)
    assert edits.moved_edges(new + 0.5, w, output_axis) is None
    same = edits.moved_edges(w, w, output_axis)
    assert same is not None
    assert torch.equal(same.source.flatten(), torch.arange(w[..., 0].numel()))
    assert same.inputs is not None


class Restless(efficient_kan.KANLinear):
    """Updates its grid, or writes to its weights, in the middle of forward."""

    action = "update"

    def forward(self, x: Tensor) -> Tensor:
        if self.action == "update":
            self.update_grid(x.detach())
        elif self.action == "write":
            with torch.no_grad():
                self.spline_weight.mul_(0)
        return super().forward(x)


def test_updates_inside_forward_are_seen_and_writes_are_not_lost() -> None:
    layer, x = Restless(20, 30, scale_noise=2.0).double(), torch.rand(300, 20).double() * 1.8 - 0.9
    kanmeta.convert(layer)
    plain = kanmeta.materialize(copy.deepcopy(layer))
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-8)
    layer.action = "write"
    with pytest.raises(errors.CoefficientWriteError, match="a write in forward"):
        layer(x)


def test_a_grid_update_in_inference_mode_leaves_a_layer_that_trains() -> None:
    layer, x = efficient_kan.KANLinear(20, 30), torch.rand(300, 20)
    with torch.inference_mode():
        kanmeta.convert(layer)
        layer.update_grid(torch.rand(300, 20))
    layer(x).sum().backward()
    assert layer.prompts.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compile_and_export_after_a_grid_update() -> None:
    layer, x = efficient_kan.KANLinear(20, 30), torch.rand(300, 20)
    kanmeta.convert(layer)
    layer.update_grid(x)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(layer, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), expected)
    layer.update_grid(x * 0.5)
    torch.testing.assert_close(compiled(x), layer(x))
    torch.compiler.reset()
