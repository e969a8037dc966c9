"""What distill takes as data, and what it says of data that do not fit."""

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from kanmeta.distill_data import Batches
from tests.cases import kan, same_state
from tests.test_distill import FAST, ODD, UNJUDGED, Odd, trained

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")  # tiny models


class Once:
    """Batches that there are no more of when they are asked for again."""

    def __init__(self, x: Tensor) -> None:
        self.batches = iter(x.split(64))

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches


def test_data_that_end_are_refused() -> None:
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3), hidden=8)
    with pytest.raises(errors.PlanError, match="no batches when it is read again"):
        kanmeta.distill(student, teacher, data=Once(x), **FAST)


def test_no_more_batches_are_kept_than_are_held_out() -> None:
    alive = []

    def made() -> Iterator[Tensor]:
        for _ in range(100):
            batch = torch.zeros(4, 8)
            alive.append(weakref.ref(batch))
            yield batch

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            return made()

    held_out = Batches(Loader(), 1, torch.device("cpu"), None).held_out
    assert len(held_out) == 8
    assert sum(batch() is not None for batch in alive) <= 8


@pytest.mark.parametrize("data", [None, "normal"])
def test_numbers_that_make_no_sense_are_refused_at_once(data: str | None) -> None:
    teacher, _ = trained()
    student = kanmeta.convert(kan(8, 12, 3), hidden=8)
    for name in ("steps", "layer_steps", "fit_steps"):
        with pytest.raises(
            errors.PlanError, match=f"{name}=-1: expected a whole number, 0 or more"
        ):
            kanmeta.distill(student, teacher, data=data, **{name: -1})
    with pytest.raises(errors.PlanError, match="batch_size=0: expected a whole"):
        kanmeta.distill(student, teacher, data=data, batch_size=0)
    with pytest.raises(errors.PlanError, match=r"steps=2\.5: expected a whole"):
        kanmeta.distill(student, teacher, data=data, steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(errors.PlanError, match="loss='hinge'"):
        kanmeta.distill(student, teacher, data=data, loss="hinge")


def test_data_can_be_tensors_batches_or_a_loader() -> None:
    teacher, x = trained()
    dataset = torch.utils.data.TensorDataset(x, torch.zeros(len(x)))
    loader = torch.utils.data.DataLoader(dataset, batch_size=64)
    for data in (x, (x,), list(x.split(64)), loader):
        student = kanmeta.convert(kan(8, 12, 3), dim_z=2, hidden=8)
        report = kanmeta.distill(student, teacher, data=data, **FAST)
        assert report.output_error is not None
        assert report.output_error < 0.6


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (3, "data is a int"),
        ((torch.rand(4, 8), torch.rand(3, 8)), "expected one number > 0"),
        ([], "no batches"),
        ([{"x": 1}], "data gives a dict"),
        (torch.rand(0, 8), "expected one number > 0"),
        (iter([torch.rand(4, 8)]), "only once"),
        (b"normal", 'data is a bytes: .*None or "normal"'),
        ("Normal", "data='Normal': the only text is \"normal\""),
        (torch.full((4, 8), torch.nan), "NaN or infinite numbers, in 4 of 4 rows"),
        (torch.rand(4, 8) / torch.tensor([1.0, 0, 1, 1])[:, None], "in 1 of 4 rows"),
        ([torch.full((4, 8), torch.inf)], "NaN or infinite"),
        ([torch.tensor(torch.nan)], "NaN or infinite numbers, in 1 of 1 rows"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_data_that_does_not_fit_is_refused(data: Any, text: str) -> None:
    teacher, _ = trained()
    student = kanmeta.convert(kan(8, 12, 3))
    before = {name: t.clone() for name, t in student.state_dict().items()}
    with pytest.raises(errors.PlanError, match=text):
        kanmeta.distill(student, teacher, data=data, **FAST)
    assert same_state(student, before)
    model = kan(8, 12, 3)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(errors.PlanError):
        kanmeta.convert(model, distill=data)
    assert same_state(model, state)


def test_numbers_that_are_not_finite_are_found_in_later_batches_too() -> None:
    """Not only in what is held out; the student is as it was."""
    teacher, x = trained()
    student = kanmeta.convert(kan(8, 12, 3))
    before = {name: t.clone() for name, t in student.state_dict().items()}
    batches = [x[:64], x[64:128], x[128:192].clone()]
    batches[2][5, 3] = torch.nan
    with pytest.raises(errors.PlanError, match="in 1 of 64 rows of a batch"):
        kanmeta.distill(student, teacher, data=batches, **FAST)
    assert same_state(student, before)
    kanmeta.distill(student, teacher, data=[*batches[:2], batches[2][:5]], **FAST)


@pytest.mark.parametrize("kind", ODD)
def test_outputs_that_cannot_be_matched_on_data_are_refused(kind: str) -> None:
    teacher, x = trained()
    odd, student = Odd(teacher, ODD[kind]), kanmeta.convert(Odd(kan(8, 12, 3), ODD[kind]))
    before = copy.deepcopy(student.state_dict())
    if kind in UNJUDGED:
        with pytest.raises(errors.PlanError, match="tensor"):
            kanmeta.distill(student, odd, data=x, **FAST)
        assert all(torch.equal(t, before[n]) for n, t in student.state_dict().items())
    else:
        report = kanmeta.distill(student, odd, data=x, **FAST)
        assert report.output_error is not None


def test_a_mask_among_the_data_may_be_infinite() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = kan(8, 12, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return torch.where(mask.isinf(), 0, self.body(x))

    teacher, mask = Masked(), torch.zeros(64, 3)
    mask[:, 0] = -torch.inf
    student = kanmeta.convert(Masked())
    kanmeta.distill(student, teacher, data=(torch.rand(64, 8), mask), **FAST)


@pytest.mark.parametrize("bits", ["4", True, 0, 9])
def test_bits_that_are_no_number_of_bits_are_refused(bits: Any) -> None:
    teacher, _ = trained()
    student = kanmeta.convert(kan(8, 12, 3))
    with pytest.raises(errors.PlanError, match="expected a number from 1 to 8"):
        kanmeta.distill(student, teacher, data=torch.rand(40, 8), prompt_bits=bits)
