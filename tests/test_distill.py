"""distill and convert(distill=): what it must reach, what it must leave alone, what it refuses."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import code_fit, errors, losses, matching
from kanmeta.distill_data import Batches
from kanmeta.linear_code import linear_code, pca_floor, squared_error
from recipes.reference.fast_kan import FastKAN
from tests.cases import CASES, EXAMPLE, Case, case, kan, same_state

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")  # tiny models

FAST: dict[str, Any] = {"fit_steps": 60, "layer_steps": 20, "steps": 40, "progress": False}


def coefficients(model: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """Of an unconverted model, edges flattened, as the layers of a converted one describe them."""
    return {
        name: binding.spec.read(model.get_submodule(name)).reshape(-1, binding.spec.dim_w)
        for name, binding in kanmeta.access.converted_layers(like).items()
    }


def generated(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        return {n: w.reshape(-1, w.shape[-1]) for n, w in kanmeta.coefficients(model).items()}


def trained(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network that has learnt something, and inputs of the kind that it has learnt from."""
    torch.manual_seed(seed)
    model, x = kan(8, 12, 3), torch.rand(640, 8) * 2 - 1
    y = torch.stack([x[:, :3].sin().sum(1), x[:, 3] * x[:, 4], (3 * x[:, 5:]).cos().mean(1)], 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, x


class Odd(nn.Module):
    """A network whose output is no plain tensor."""

    def __init__(self, net: nn.Module, give: Any) -> None:
        super().__init__()
        self.net, self.give = net, give

    def forward(self, x: Tensor) -> Any:
        return self.give(x, self.net(x))


ODD: dict[str, Any] = {
    "dict in a dict": lambda x, y: {"out": {"logits": y}},
    "list": lambda x, y: [None, y],
    "none": lambda x, y: None,
    "classes": lambda x, y: y.argmax(1),
    "input first": lambda x, y: (x, y),
    "number": lambda x, y: y.mean(),
}
UNJUDGED = ("none", "classes", "input first")
"""Kinds whose outputs cannot be matched."""


# --- every family -------------------------------------------------------------------------------


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_as_many_numbers_as_coefficients_are_exact(c: Case) -> None:
    for dtype, exact in ((torch.float64, 1e-12), (torch.float32, 3e-5)):
        model = c.model(dtype)
        x = c.x(dtype=dtype)
        with torch.no_grad():
            expected = c.run(model, x)
            c.convert(model, dim_z=c.dim_w, hidden=c.dim_w, distill=True)
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(c.run(model, x), expected, rtol=exact, atol=exact)


@pytest.mark.parametrize("dim_z", [1, 2])
@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_never_worse_than_pca(c: Case, dim_z: int) -> None:
    teacher = c.model()
    student = c.convert(c.model(), dim_z=dim_z, hidden=8)
    report = kanmeta.distill(student, teacher, fit_steps=30, progress=False)
    target, made = coefficients(teacher, student), generated(student)
    for names in _clusters(student):
        floor = sum(pca_floor([target[n] for n in names], dim_z))
        reached = sum(squared_error(made[n], target[n]) for n in names)
        size = sum(float(target[n].square().sum()) for n in names)
        assert reached <= floor + 1e-12 * size
    assert report.coefficient_error <= report.pca_floor + 1e-9
    assert all(torch.isfinite(p).all() for p in student.parameters())


def _clusters(model: nn.Module) -> list[list[str]]:
    layers = kanmeta.access.converted_layers(model)
    metas = dict.fromkeys(b.meta_learner for b in layers.values())
    return [[n for n, b in layers.items() if b.meta_learner is m] for m in metas]


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "identity"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [9, 12, 18, 25])
def test_every_meta_learner_can_be_exact_and_beat_pca(
    activation: str, bias: bool, hidden: int
) -> None:
    teacher, _ = trained()
    teacher.double()
    for dim_z in (9, 11, 3):
        student = kanmeta.convert(
            kan(8, 12, 3).double(), dim_z=dim_z, hidden=hidden, activation=activation, bias=bias
        )
        report = kanmeta.distill(student, teacher, fit_steps=10, progress=False)
        if dim_z >= 9:
            assert report.coefficient_error < 1e-7 if activation == "tanh" else 1e-12
        else:
            assert 0 < report.coefficient_error <= report.pca_floor * (1 + 1e-6)


def test_the_floor_is_pca() -> None:
    """Against the singular values, of one layer and of two that share a mean."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(40, 5, generator=generator, dtype=torch.float64) + i for i in range(2)]
    whole = torch.cat(parts)
    values = torch.linalg.svdvals(whole - whole.mean(0))
    assert sum(pca_floor(parts, 2)) == pytest.approx(float(values[2:].square().sum()))
    assert linear_code(parts, 2).axes.shape == (5, 2)


def test_a_metric_lowers_the_error_measured_in_it() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    metric = torch.diag(torch.tensor([100.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64))

    def error(metric_used: Tensor | None) -> float:
        code = linear_code([w], 1, metric_used)
        x = code.targets(w, 0)
        rest = (x - x @ code.axes @ code.axes.T) * code.spread @ code.inverse
        return float(torch.einsum("ei,ij,ej->", rest, metric, rest))

    assert error(metric) < 0.9 * error(None)


# --- degenerate coefficients ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zero", "constant", "duplicate", "one edge", "huge", "tiny"])
@pytest.mark.parametrize("data", [False, True])
def test_degenerate_coefficients_give_no_nan(kind: str, data: bool) -> None:
    sizes = (1, 1) if kind == "one edge" else (4, 5, 3)
    teacher = kan(*sizes)
    with torch.no_grad():
        for p in teacher.parameters():
            if kind == "zero":
                p.zero_()
            elif kind == "constant":
                p.fill_(0.3)
            elif kind == "duplicate":
                p.copy_(p[:1, :1].clone().expand_as(p))
            elif kind in ("huge", "tiny"):
                p.mul_(1e12 if kind == "huge" else 1e-12)
    x = torch.rand(40, sizes[0])
    student = kanmeta.convert(kan(*sizes), dim_z=2, hidden=8)
    report = kanmeta.distill(student, teacher, data=x if data else None, **FAST)
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert torch.isfinite(student(x)).all()
    if kind in ("zero", "constant", "duplicate", "one edge") and not data:
        torch.testing.assert_close(student(x), teacher(x), rtol=1e-4, atol=1e-5)
    assert report.coefficient_error == report.coefficient_error


def test_coefficients_that_are_not_finite_are_refused() -> None:
    teacher, _ = trained()
    student = kanmeta.convert(kan(8, 12, 3))
    before = {name: t.clone() for name, t in student.state_dict().items()}
    with torch.no_grad():
        teacher.layers[1].base_weight[0, 0] = float("nan")
    with pytest.raises(errors.PlanError, match=r"layers\.1 are not finite"):
        kanmeta.distill(student, teacher, progress=False)
    assert same_state(student, before)


# --- with data ------------------------------------------------------------------------------------


def test_each_stage_helps_and_is_reported() -> None:
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=1, hidden=16, clusters="layer")
    blind = copy.deepcopy(student)
    generator = torch.Generator().manual_seed(0)
    kanmeta.distill(blind, teacher, progress=False, fit_steps=200, generator=generator)
    report = kanmeta.distill(
        student, teacher, data=x, loss="mse", layer_steps=200, steps=300, fit_steps=200,
        progress=False, generator=generator,
    )  # fmt: skip
    fresh = torch.rand(500, 8) * 2 - 1
    with torch.no_grad():
        y = teacher(fresh)
        error, without = ((m(fresh) - y).norm() / y.norm() for m in (student, blind))
    assert error < 0.5 * without
    names = [stage.name for stage in report.stages]
    assert names == ["linear code", "meta-learner", "layer outputs", "outputs (mse)"]
    assert report.stages[1].coefficient_error != report.stages[0].coefficient_error
    assert "2 of 2 layers" in report.stages[0].note
    assert report.loss == "mse"
    assert report.output_error == pytest.approx(float(error), rel=0.5)
    assert all(layer.function_error is not None for layer in report.layers)
    text = str(report)
    for word in ("layers.0", "PCA floor", "outputs (mse)", "relative error"):
        assert word in text
    assert json.loads(json.dumps(report.as_dict()))["layers"][0]["edges"] == 96


def test_the_loss_is_kl_for_class_scores_and_what_the_user_says() -> None:
    y = torch.randn(4, 3)
    assert losses.resolve_loss(None, y)[0] == "kl"
    assert losses.resolve_loss(None, y[:, :1])[0] == "mse"
    assert losses.resolve_loss(None, y[None])[0] == "mse"
    assert losses.resolve_loss(nn.functional.l1_loss, y)[0] == "l1_loss"
    with pytest.raises(errors.PlanError, match="expected 'kl', 'mse'"):
        losses.resolve_loss("hinge", y)
    p, q = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(losses.kl(q, p), expected.mean())


def test_a_loss_is_only_asked_about_outputs_of_both_models() -> None:
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=2, hidden=16)
    first: list[Tensor] = []

    def loss(ours: Tensor, theirs: Tensor) -> Tensor:
        """In units of what it was at first."""
        error = (ours - theirs).square().mean()
        first.append(error.detach())
        return error / first[0]

    report = kanmeta.distill(student, teacher, data=x, loss=loss, **FAST)
    assert report.output_error < 0.5
    assert first[0] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["pykan", "fast-kan-base-norm", "private-conv-tap", "private-conv-pair"]
)
def test_real_layers_with_data(name: str) -> None:
    c = case(name)
    teacher = c.model(torch.float32)
    student = c.convert(c.model(torch.float32, seed=1), dim_z=2, hidden=12)
    x = c.x(64, torch.float32)
    report = kanmeta.distill(student, teacher, data=x, batch_size=16, **FAST)
    assert report.output_error is not None
    assert all(layer.function_error is not None for layer in report.layers)
    # What stays plain came along: biases, norms.
    for key, tensor in student.state_dict().items():
        if key in teacher.state_dict():
            assert torch.equal(tensor, teacher.state_dict()[key])


# --- what it leaves alone -------------------------------------------------------------------------


def test_the_teacher_and_modes_are_untouched() -> None:
    teacher, x = trained()
    teacher.layers[0].train()
    teacher.layers[1].eval()
    before = copy.deepcopy(teacher.state_dict())
    modes = [m.training for m in teacher.modules()]
    student = kanmeta.convert(kan(8, 12, 3), hidden=8)
    student.layers[1].eval()
    kanmeta.distill(student, teacher, data=x, **FAST)
    assert same_state(teacher, before)
    assert [m.training for m in teacher.modules()] == modes
    assert student.layers[0].training
    assert not student.layers[1].training
    assert all(p.grad is None for m in (student, teacher) for p in m.parameters())
    assert not any(m._forward_hooks for m in teacher.modules())


def test_a_converted_teacher() -> None:
    teacher, x = trained()
    big = kanmeta.convert(copy.deepcopy(teacher), dim_z=9, hidden=18, distill=True)
    before = copy.deepcopy(big.state_dict())
    student = kanmeta.convert(kan(8, 12, 3), dim_z=9, hidden=9)
    kanmeta.distill(student, big, progress=False)
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-4, atol=1e-5)
    assert same_state(big, before)


def test_another_architecture_is_refused() -> None:
    student = kanmeta.convert(kan(8, 12, 3))
    before = {name: t.clone() for name, t in student.state_dict().items()}
    for teacher, text in (
        (kan(8, 13, 3), r"layers\.0\.base_weight: expected \(12, 8\), found \(13, 8\)"),
        (kan(8, 12), r"layers\.1: expected a KANLinear, found no such module"),
        (FastKAN([8, 12, 3]), "expected a KANLinear, found a FastKANLayer"),
    ):
        with pytest.raises(errors.ModelMismatchError, match=text):
            kanmeta.distill(student, teacher, progress=False)
    assert same_state(student, before)
    with pytest.raises(errors.NothingToConvertError):
        kanmeta.distill(kan(8, 12, 3), kan(8, 12, 3))
    with pytest.raises(errors.PlanError, match="pass data="):
        kanmeta.distill(student, kan(8, 12, 3), from_student=True)


def test_a_narrow_meta_learner_is_refused_and_the_model_stays_as_it_is() -> None:
    model = kan(8, 12, 3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(errors.PlanError, match=r"hidden >= min\(dim_z, dim_w\) = 4"):
        kanmeta.convert(model, dim_z=4, hidden=3, distill=True)
    assert same_state(model, before)
    assert type(model.layers[0]).__name__ == "KANLinear"
    assert not hasattr(model.layers[0], "prompts")


@pytest.mark.parametrize("steps", [400, 1600])
def test_it_stops_early_only_once_rates_have_fallen(steps: int) -> None:
    """Progress may show only at small rates; without any there, 200 steps are enough."""
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), hidden=8)
    data = Batches(x, 64, torch.device("cpu"), None)
    ticks: list[None] = []
    matching.match_outputs(
        student, teacher, kanmeta.access.complete_layers(student), data,
        lambda ours, theirs: (0 * ours).sum() + 1, steps, lambda: ticks.append(None),
    )  # fmt: skip
    assert len(ticks) == min(steps, int(0.75 * steps) + 200)


def test_a_seed_gives_the_same_student() -> None:
    teacher, x = trained()
    states = []
    for _ in range(2):
        student = kanmeta.convert(kan(8, 12, 3), generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        torch.rand(3)  # the global generator plays no part
        kanmeta.distill(student, teacher, data=x, generator=generator, **FAST)
        states.append(student.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_frozen_prompts_stay_frozen_and_many_edges_take_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kanmeta.linear_code._BLOCK", 7)
    monkeypatch.setattr(code_fit, "_SAMPLE", 50)
    teacher, _ = trained()
    student = kanmeta.convert(kan(8, 12, 3).requires_grad_(False), dim_z=2, hidden=8)
    report = kanmeta.distill(student, teacher, **FAST)
    assert report.coefficient_error <= report.pca_floor
    assert not any(p.requires_grad for p in student.parameters())


def test_few_bit_prompts_are_tuned_by_matching_outputs() -> None:
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=2, hidden=16)
    kanmeta.distill(student, teacher, data=x, loss="mse", **FAST)
    with kanmeta.few_bit_prompts(student, bits=3):
        with torch.no_grad():
            before = float((student(x) - teacher(x)).norm())
        kanmeta.distill(
            student, teacher, data=x, loss="mse", from_student=True, layer_steps=100, steps=200,
            progress=False,
        )  # fmt: skip
    for z in kanmeta.prompts(student).values():
        assert all(len(column.unique()) <= 8 for column in z.detach().reshape(-1, 2).T)
    with torch.no_grad():
        assert float((student(x) - teacher(x)).norm()) < 0.8 * before


def test_only_the_named_example_needs_no_data() -> None:
    """convert(distill=False) and None convert as ever; a string is no data."""
    for nothing in (None, False):
        model = case(EXAMPLE).convert(case(EXAMPLE).model(), distill=nothing)
        assert kanmeta.prompts(model)
    with pytest.raises(errors.PlanError, match="the only text is"):
        case(EXAMPLE).convert(case(EXAMPLE).model(), distill="yes")


@pytest.mark.parametrize(("bits", "width"), [(2, 2), (3.33, 4), (4, 4)])
def test_codes_can_be_trained(bits: float, width: int, tmp_path: Path) -> None:
    """Better than codebooks alone, and what is trained is what the file holds."""
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), dim_z=2, hidden=16)
    kanmeta.distill(student, teacher, data=x, loss="mse", **FAST)
    rounded = copy.deepcopy(student)
    with kanmeta.few_bit_prompts(rounded, width), torch.no_grad():
        before = float((rounded(x) - teacher(x)).norm())
        plain = float((student(x) - teacher(x)).norm())
    report = kanmeta.distill(
        student, teacher, data=x, loss="mse", from_student=True, prompt_bits=bits, steps=400,
        progress=False,
    )  # fmt: skip
    assert [stage.name for stage in report.stages] == [f"outputs (mse), {bits} bits"]
    with torch.no_grad():
        after = float((student(x) - teacher(x)).norm())
    assert after < plain + (0.6 if bits == width else 1) * (before - plain)  # 10 trained, 16 not
    for z in kanmeta.prompts(student).values():
        assert all(len(column.unique()) <= int(2**bits) for column in z.detach().reshape(-1, 2).T)
    kanmeta.save(student, tmp_path / "m.safetensors", prompt_bits=width)
    fresh = kanmeta.load(kan(8, 12, 3), tmp_path / "m.safetensors")
    torch.testing.assert_close(fresh(x), student(x), rtol=1e-5, atol=1e-6)
    for number in (0.5, 16):
        with pytest.raises(errors.PlanError, match="expected a number from 1 to 8"):
            kanmeta.distill(student, teacher, data=x, prompt_bits=number)
    with pytest.raises(errors.PlanError, match="pass data="):
        kanmeta.distill(student, teacher, prompt_bits=4)
