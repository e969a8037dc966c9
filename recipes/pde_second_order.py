"""Table 8's Poisson equation in 20 dimensions, solved by a small converted network to more digits.

    python -m recipes.pde_second_order

Not in the paper: a converted [20, 16, 16, 1] network with a seventeenth of the parameters of the
table's KAN, trained by Levenberg and Marquardt's method on points that are drawn anew for each
step. Everything else is as in recipes.pde, protocol fair.
"""

from collections.abc import Sequence
from typing import Any

import torch

from recipes import cli, pde, unit_ball
from recipes.job import Job, Place, Profile, Protocol, Task
from recipes.levenberg_marquardt import LevenbergMarquardt
from recipes.models import build

__all__ = ["grid", "main", "model", "task"]

EPOCHS: dict[Profile, int] = {"smoke": 2, "cpu": 24, "full": 40}
STEPS: dict[Profile, int] = {"smoke": 1, "cpu": 5, "full": 5}  # of an epoch
POINTS: dict[Profile, int] = {"smoke": 50, "cpu": 2000, "full": 5000}  # a step
NOTES = (
    "Not the paper's network or optimiser: 1,385 parameters in place of 24,480, SiLU in the "
    "meta-learner, two numbers an edge; Levenberg-Marquardt steps in float64.",
    *pde.FAIR_NOTES,
)


def grid(protocol: Protocol, profile: Profile) -> list[Job]:
    """One network, every seed; the same for both protocols."""
    config: dict[str, Any] = {
        "equation": "Poisson",
        "widths": [20, 16, 16, 1] if profile != "smoke" else [3, 4, 1],
        "convert": {"dim_z": 2, "hidden": 16, "activation": "silu", "init": "match"},
        "steps": STEPS[profile],
        "points": POINTS[profile],
        "judged": pde.JUDGED[profile],
        "hard_boundary": True,
    }
    row = "T8|Poisson|20D"
    return [
        Job(
            recipe="pde_second_order",
            name="poisson-20d-metakan",
            row=row,
            model="MetaKAN",
            protocol=protocol,
            profile=profile,
            seed=seed,
            epochs=EPOCHS[profile],
            config=config,
            variant="second-order",
        )
        for seed in range(pde.SEEDS[profile])
    ]


def model(job: Job) -> torch.nn.Module:
    """The model of a job, on the CPU, with its first values: float64."""
    options = {"grid_size": 5, "enable_standalone_scale_spline": False}
    widths, convert = tuple(job.config["widths"]), job.config["convert"]
    return build("kan", widths, options, convert, job.seed, torch.float64)


def task(job: Job, place: Place) -> Task:
    """See :class:`recipes.job.Task`."""
    config, device = job.config, place.device
    net = model(job).to(device)
    dims = config["widths"][0]
    solution = unit_ball.Solution.of(dims, device, torch.float64)
    residual = unit_ball.residuals(config["equation"], solution, config["hard_boundary"])

    def residuals(some: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return residual(some, x, None)

    def draw(generator: torch.Generator) -> torch.Tensor:
        return unit_ball.ball(config["points"], dims, generator).to(solution.c)

    optimizer = LevenbergMarquardt(net, residuals)

    def epoch(number: int) -> float:
        generator = torch.Generator().manual_seed(job.seed * 10_000 + number)
        steps = [optimizer.step(draw(generator)) for _ in range(config["steps"])]
        return sum(steps) / len(steps)

    return Task(
        model=net,
        optimizer=optimizer,
        epoch=epoch,
        score=unit_ball.judge(net, config, solution),
        loss=lambda some: residuals(some, draw(torch.Generator().manual_seed(0))).square().mean(),
        metric="relative l2 error",
        higher=False,
        source={"name": config["equation"], "dimensions": dims},
        notes=NOTES,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    cli.run(
        "pde_second_order", __doc__ or "", grid, argv, has_library=False, variant="second-order"
    )


if __name__ == "__main__":
    main()
