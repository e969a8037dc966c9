"""A pykan network that has learnt a formula of Feynman's, distilled: relative errors.

    python -m recipes.distill_function --seed 0

I.6.2: f(theta, sigma) = exp(-(theta / sigma)^2 / 2) / (sqrt(2 pi) sigma), both from 1 to 3. Writes
a JSON file under ``results/distill_function/``.
"""

import argparse
import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import kanmeta
from recipes.records import code_state, hardware, versions, write_json
from recipes.training import one_thread

__all__ = ["main"]

WIDTHS = (2, 5, 1)
STEPS = 1500  # of Adam
ROWS = 1000


def formula(x: Tensor) -> Tensor:
    """I.6.2 of ``(N, 2)``: ``(N, 1)``."""
    theta, sigma = x[:, :1], x[:, 1:]
    return (-((theta / sigma) ** 2) / 2).exp() / (math.sqrt(2 * math.pi) * sigma)


def samples(seed: int) -> Tensor:
    """Inputs, scaled to the grid [-1, 1] by :func:`scaled`."""
    return 1 + 2 * torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(seed))


def scaled(x: Tensor) -> Tensor:
    """From [1, 3] to [-1, 1]."""
    return x - 2


@torch.no_grad()
def relative_error(model: nn.Module, x: Tensor) -> float:
    """||f - model|| / ||f||."""
    y = formula(x)
    return float((model(scaled(x)) - y).norm() / y.norm())


def trained(seed: int) -> nn.Module:
    """A pykan network that has learnt the formula."""
    from kan import KAN  # type: ignore[import-untyped]  # slow to import

    model: nn.Module = KAN(list(WIDTHS), grid=5, k=3, seed=seed, auto_save=False).speed()
    x = samples(seed)
    y = formula(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(scaled(x)), y))
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.distill_function",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="parent of results/")
    args = parser.parse_args(argv)
    with one_thread():
        model, test = trained(args.seed), samples(args.seed + 1000)
        rows = []
        for dim_z in (1, 2, 4):
            student = kanmeta.convert(
                copy.deepcopy(model),
                clusters="layer",
                dim_z=dim_z,
                hidden=16,
                generator=torch.Generator().manual_seed(args.seed),
            )
            kanmeta.distill(
                student,
                model,
                data=scaled(samples(args.seed)),
                loss="mse",
                generator=torch.Generator().manual_seed(args.seed),
            )
            rows.append({"dim_z": dim_z, "relative_error": relative_error(student, test)})
            print(rows[-1])
    result = {
        "formula": "I.6.2",
        "widths": WIDTHS,
        "seed": args.seed,
        "teacher": {"relative_error": relative_error(model, test)},
        "distilled": rows,
        "code": code_state(),
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    write_json(args.out / "results" / "distill_function" / f"I.6.2-s{args.seed}.json", result)
    print(f"trained: {result['teacher']}")


if __name__ == "__main__":
    main()
