"""The learning rates of distilling: a warm-up, then a cosine."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["warm_cosine"]


def warm_cosine(optimizer: Optimizer, warm_up: int, steps: int) -> LambdaLR:
    """Rates that rise over ``warm_up`` steps and fall to 0 after ``steps``, as half a cosine.

    Distilling starts from something good, and Adam's first steps are too long for it.
    """
    return LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
