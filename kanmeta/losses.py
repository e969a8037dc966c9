"""What distilling lowers: a number made of a student's and a teacher's outputs."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kanmeta.errors import PlanError

__all__ = ["Loss", "check_loss", "kl", "resolve_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(student's output, teacher's output) -> a number."""


def resolve_loss(loss: "str | Loss | None", output: Tensor) -> tuple[str, Loss]:
    """Name and function of the loss.

    None: ``"kl"`` for a matrix ``(N, C)`` with C >= 2, taken for class scores, else ``"mse"``.

    Args:
        loss: what was asked for.
        output: of the model.

    Raises:
        PlanError: ``loss`` is none, or does not fit the model's ``output``.
    """
    if loss is None:
        loss = "kl" if output.ndim == 2 and output.shape[1] >= 2 else "mse"
    if loss == "kl":
        if output.ndim == 0:
            raise PlanError(
                'loss="kl" compares class scores along the last axis, and the model gives a single '
                'number: use loss="mse", or a function of your own'
            )
        return "kl", kl
    if loss == "mse":
        return "mse", F.mse_loss
    check_loss(loss)
    assert callable(loss)
    return getattr(loss, "__name__", type(loss).__name__), functools.partial(_checked, loss)


def _checked(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """What ``loss`` gives; a PlanError if nothing can be trained by it."""
    value = loss(student, teacher)
    one = isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
    wanted = student.requires_grad and torch.is_grad_enabled()
    if not one or (wanted and not value.requires_grad):
        found = f"a tensor {(*value.shape,)}" if isinstance(value, Tensor) else repr(value)
        raise PlanError(
            f"the loss gives {found}: expected one number, a floating-point tensor with the "
            "gradient of the student's output. Write for instance "
            "(student - teacher).square().mean()"
        )
    return value


def check_loss(loss: object) -> None:
    """Raise PlanError if ``loss`` is no loss."""
    if not (loss is None or loss in ("kl", "mse") or callable(loss)):
        raise PlanError(f"loss={loss!r}: expected 'kl', 'mse', a function of two tensors, or None")


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last axis, mean over the rows."""
    classes = student.shape[-1]
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return F.kl_div(
        log_q.reshape(-1, classes),
        log_p.reshape(-1, classes),
        reduction="batchmean",
        log_target=True,
    )
