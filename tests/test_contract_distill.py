"""Every layer of the case table can be distilled with data, whatever its basis does at zero."""

import copy

import torch

import kanmeta
from tests.cases import Case, each_case


@each_case
def test_distilling_with_data_ends_with_finite_numbers(case: Case) -> None:
    teacher, x = case.model(torch.float32), case.x(dtype=torch.float32)
    student = case.convert(copy.deepcopy(teacher), dim_z=2)
    before = [z.clone() for z in kanmeta.prompts(student).values()]
    report = kanmeta.distill(student, teacher, data=x, steps=2, layer_steps=2, fit_steps=3)
    assert report.output_error is not None
    assert 0 <= report.output_error < float("inf")
    with torch.no_grad():
        assert case.run(student, x).isfinite().all()
    after = kanmeta.prompts(student).values()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
