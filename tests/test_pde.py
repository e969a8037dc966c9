"""recipes.pde: the jobs of each protocol, and the estimate of the residual."""

from dataclasses import replace

import pytest
import torch

from recipes import pde, pde_second_order
from recipes.job import PROFILES, Profile
from recipes.models import build
from recipes.unit_ball import EQUATIONS, Solution, ball, residuals


def test_the_papers_points_grow_with_the_dimension() -> None:
    jobs = pde.grid("paper", "full")
    found = {(j.config["widths"][0], j.config["points"], j.config["boundary"]) for j in jobs}
    assert found == {(20, 2000, 2000), (50, 4000, 5000), (100, 8000, 10000)}
    assert not any(job.config["hard_boundary"] or job.variant for job in jobs)
    fair = pde.grid("fair", "full")
    assert {(j.config["points"], j.config["hard_boundary"]) for j in fair} == {(100, True)}


@pytest.mark.parametrize("profile", PROFILES)
def test_stochastic_jobs_differ_in_axes_only(profile: Profile) -> None:
    jobs = pde.grid("fair", profile)
    usual = {(job.name, job.seed): job for job in jobs if not job.variant}
    stochastic = [job for job in jobs if job.variant]
    assert jobs == [*usual.values(), *stochastic]
    assert len(stochastic) == (1 if profile == "smoke" else len(usual))
    for job in stochastic:
        assert (job.variant, job.config["axes"]) == ("stochastic", 4)
        config = {**job.config, "axes": None}
        assert replace(job, config=config, variant="") == usual[job.name, job.seed]


def test_stochastic_jobs_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    pde.main(["--list", "--only", "poisson-50d-*", "--seeds", "1", "--variant", "stochastic"])
    listed = [f"poisson-50d-{kind}.stochastic.fair.cpu.s1" for kind in ("kan", "metakan")]
    assert capsys.readouterr().out.split() == listed


def test_the_second_order_recipe_runs_its_variant(capsys: pytest.CaptureFixture[str]) -> None:
    pde_second_order.main(["--list", "--seeds", "1"])
    assert capsys.readouterr().out.split() == ["poisson-20d-metakan.second-order.fair.cpu.s1"]


@pytest.mark.parametrize("hard_boundary", [True, False])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_estimates_of_the_residual_average_to_it(equation: str, hard_boundary: bool) -> None:
    options = {"enable_standalone_scale_spline": False}
    net = build("kan", (4, 3, 1), options, {"hidden": 4}, 0, torch.float64)
    x = ball(9, 4, torch.Generator().manual_seed(0)).double()
    residual = residuals(equation, Solution.of(4, dtype=torch.float64), hard_boundary)
    exact = residual(net, x, None)
    pairs = torch.combinations(torch.arange(4), 2)
    estimates = torch.stack([residual(net, x, axes) for axes in pairs])
    assert estimates.std(0).min() > 1e-4
    assert torch.allclose(estimates.mean(0), exact)
