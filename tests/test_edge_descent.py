"""The search for better prompts while the other edges of a layer stay."""

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kanmeta
from kanmeta import edge_descent, edge_functions, layer_matching, matching
from kanmeta.access import complete_layers
from kanmeta.binding import Binding
from kanmeta.distill_data import Batches
from kanmeta.edge_search import grid
from kanmeta.layer_metric import Call, watching
from recipes.reference.conv_kan import KANConv2DLayer
from recipes.reference.efficient_kan import KANLinear
from recipes.reference.fast_kan import FastKANLayer
from tests.cases import CASES, Case, case

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")


def _pair(
    seed: int, widths: tuple[int, int], dim_z: int, kind: type[nn.Module] = KANLinear
) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer, a converted one of other coefficients, and inputs that go together."""
    torch.manual_seed(seed)
    teacher = nn.Sequential(kind(*widths))
    student = kanmeta.convert(nn.Sequential(kind(*widths)), dim_z=dim_z, hidden=6)
    common = torch.randn(96, 1)
    return teacher, student, common + 0.5 * torch.randn(96, widths[0])


def _target(teacher: nn.Module, binding: Binding, name: str = "0") -> Tensor:
    return binding.spec.read(teacher.get_submodule(name))


@torch.no_grad()
def _error(teacher: nn.Module, student: nn.Module, x: Tensor) -> float:
    return float((teacher(x) - student(x)).square().sum())


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    widths=st.tuples(st.integers(2, 20), st.integers(1, 5)),
    dim_z=st.sampled_from((1, 2)),
    kind=st.sampled_from((KANLinear, FastKANLayer)),
)
def test_a_round_only_lowers_the_error_of_the_layer(
    seed: int, widths: tuple[int, int], dim_z: int, kind: type[nn.Module]
) -> None:
    teacher, student, x = _pair(seed, widths, dim_z, kind)
    (binding,) = complete_layers(student).values()
    with torch.no_grad():
        calls = [Call((part,), {}, teacher(part)) for part in x.split(40)]
    before, prompts = _error(teacher, student, x), binding.prompts.detach().clone()
    helped = edge_descent.descend(binding, _target(teacher, binding), calls)
    assert helped == (_error(teacher, student, x) < before)
    assert helped or torch.equal(binding.prompts, prompts)


def test_with_one_input_it_is_the_best_point_of_the_grid() -> None:
    teacher, student, x = (t.double() for t in _pair(0, (1, 3), 1))  # costs are differences
    (binding,) = complete_layers(student).values()
    points, errors = grid(binding.prompts.detach().reshape(-1, 1)), []
    trial = copy.deepcopy(student)
    (other,) = complete_layers(trial).values()
    with torch.no_grad():
        for point in points:
            other.prompts.copy_(point.expand_as(other.prompts))
            errors.append((teacher(x) - trial(x)).square().sum(0))
        best = torch.stack(errors).amin(0)
        assert edge_descent.descend(
            binding, _target(teacher, binding), [Call((x,), {}, teacher(x))]
        )
        reached = (teacher(x) - student(x)).square().sum(0)
    assert (reached <= best * 1.001 + 1e-6).all()


def test_it_finds_what_a_fit_of_each_edge_alone_cannot() -> None:
    """Two inputs that are always equal: what one edge lacks the other can add."""
    teacher, student, _ = _pair(3, (2, 4), 1)
    x = torch.randn(96, 1).expand(96, 2).contiguous()
    (binding,) = complete_layers(student).values()
    with torch.no_grad():
        call = Call((x,), {}, teacher(x))
        edge_descent.descend(binding, _target(teacher, binding), [call])
        alone = _error(teacher, student, x)
        for _ in range(4):
            edge_descent.descend(binding, _target(teacher, binding), [call])
    assert _error(teacher, student, x) < 0.9 * alone


def test_what_does_not_help_the_layer_itself_is_undone() -> None:
    """As when it does not compute what its adapter says."""
    teacher, student, x = _pair(0, (6, 4), 1)
    (binding,) = complete_layers(student).values()
    target = _target(teacher, binding)
    with torch.no_grad():
        calls = [Call((x,), {}, teacher(x))]
    assert edge_descent.descend(binding, target, calls)
    prompts = binding.prompts.detach().clone()
    assert not edge_descent.descend(binding, -3 * target, calls)
    assert torch.equal(binding.prompts, prompts)


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dim_z", [1, 3])
def test_every_layer_that_can_be_searched_gets_better(c: Case, dim_z: int) -> None:
    teacher, x = c.model(torch.float32).eval(), c.x(dtype=torch.float32)
    torch.manual_seed(5)
    student = c.convert(c.model(torch.float32), dim_z=dim_z, hidden=8).eval()
    layers = complete_layers(student)
    searched = edge_descent.searchable(teacher, layers, Batches(x, 4, x.device, None))
    if dim_z == 3 or not searched:
        assert not searched or dim_z < 3
        return
    with watching(teacher, list(searched)) as calls, torch.no_grad():
        teacher(x)
    for name, binding in searched.items():
        before = binding.prompts.detach().clone()
        helped = edge_descent.descend(binding, _target(teacher, binding, name), calls[name])
        # A norm may undo what the sums gain.
        assert helped or getattr(binding.spec.basis, "finish", None), name
        assert helped != torch.equal(binding.prompts, before)


@pytest.mark.parametrize(
    "name",
    [
        "efficient-kan-scaler",
        "fast-kan-base-norm",
        "torch-conv-kan-spline",
        "kagn-conv-norm-1d-g1-tap",
    ],
)
def test_layers_with_a_known_basis_are_searched(name: str) -> None:
    c = case(name)
    x = c.x(dtype=torch.float32)
    student = c.convert(c.model(torch.float32), dim_z=1, hidden=8).eval()
    layers = complete_layers(student)
    data = Batches(x, 4, x.device, None)
    assert set(edge_descent.searchable(c.model(torch.float32).eval(), layers, data)) == {*layers}


def _matching() -> tuple[tuple[nn.Module, dict[str, Binding], Batches], Tensor]:
    """Teacher, layers and data to match them with, and the prompts of the only layer."""
    teacher, student, x = _pair(0, (6, 4), 1)
    layers = complete_layers(student)
    prompts = next(iter(layers.values())).prompts
    return (teacher, layers, Batches(x, 16, x.device, None)), prompts


def test_a_search_that_makes_held_out_inputs_worse_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, prompts = _matching()
    before = prompts.detach().clone()
    monkeypatch.setattr(edge_descent, "search", lambda *_: prompts.data.mul_(30))
    note = layer_matching.match_layers(*arguments, 0, lambda: None)
    assert torch.equal(prompts, before)
    assert "in 0 of 1 layers" in note


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_convolutions_are_searched_by_channel_and_tap(stride: int) -> None:
    torch.manual_seed(0)

    def layer() -> nn.Module:
        made = KANConv2DLayer(2, 5, 3, stride=stride, padding=1, norm_layer=nn.Identity)
        made.prelus[0].weight.fill_(1)  # nothing comes after the sums
        return nn.Sequential(made)

    teacher, student = layer(), kanmeta.convert(layer(), dim_z=1, hidden=6, edge="tap")
    (binding,) = complete_layers(student).values()
    x = torch.randn(4, 2, 9, 7)
    call = Call((x,), {}, teacher(x))
    values = edge_functions.functions(binding.layer, binding.spec, [call])
    w = _target(teacher, binding).movedim(1, -2).flatten(0, -3)
    sums = torch.stack([v.T @ c.T for v, c in zip(values, w, strict=True)]).sum(0)
    torch.testing.assert_close(sums, call.output.movedim(1, -1).flatten(0, -2))
    assert edge_descent.descend(binding, _target(teacher, binding), [call])


@torch.no_grad()
def test_images_of_two_sizes_and_endless_data() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(KANConv2DLayer(2, 4, 3, padding=1))
    student = kanmeta.convert(
        nn.Sequential(KANConv2DLayer(2, 4, 3, padding=1)), dim_z=1, hidden=6, edge="tap"
    )
    student.eval(), teacher.eval()
    data = Batches(_Endless(), 4, torch.device("cpu"), None)
    layers = complete_layers(student)
    assert list(edge_descent.searchable(teacher, layers, data)) == ["0"]
    error = layer_matching.layer_errors(teacher, layers, data)["0"]
    edge_descent.search(teacher, layers, data)
    assert layer_matching.layer_errors(teacher, layers, data)["0"] < error


class _Endless:
    def __iter__(self) -> Iterator[Tensor]:
        for size in itertools.cycle((5, 7)):
            yield torch.randn(3, 2, size, size)


def test_an_interrupted_search_leaves_prompts_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, prompts = _matching()
    before = prompts.detach().clone()

    def interrupted(*_: object) -> None:
        prompts.data.mul_(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(edge_descent, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layer_matching.match_layers(*arguments, 0, lambda: None)
    assert torch.equal(prompts, before)


def test_a_constant_in_all_outputs_does_not_slow_matching_down() -> None:
    teacher, student, x = _pair(0, (6, 4), 1)
    data = Batches(x, 16, x.device, None)
    plain = matching.output_error(matching.held_out_outputs(student, teacher, data), centred=True)
    far = [nn.Sequential(m, _Offset()) for m in (student, teacher)]
    outputs = matching.held_out_outputs(*far, data)
    assert matching.output_error(outputs, centred=True) == pytest.approx(plain, rel=1e-3)
    assert matching.output_error(outputs) < 0.1 * plain


class _Offset(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1000
