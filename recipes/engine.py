"""Precision and processes of a training step; accelerate does the work where it is asked for."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn

__all__ = ["Engine", "default_device", "is_main", "leave_group"]


def is_main() -> bool:
    """Whether this process writes files: the first of those that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"


def default_device() -> str:
    """The CPU, or a GPU where accelerate or torchrun started this process on a machine with one.

    Which GPU is accelerate's choice, see :attr:`Engine.device`.
    """
    launched = not {"ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"}.isdisjoint(os.environ)
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "False").lower() in ("1", "true", "yes")
    return "cuda" if launched and not on_cpu and torch.cuda.is_available() else "cpu"


def leave_group() -> None:
    """Leave the group of processes, if there is one, and with it end gloo's threads.

    One that frees a tensor while the interpreter ends crashes the process, which then looks as if
    its work had failed (https://github.com/pytorch/pytorch/issues/190489).
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class Engine:
    """One process in float32 on any device; under ``accelerate launch``, or with another
    precision, accelerate.

    Args:
        device: torch's name of it; accelerate picks its own.
        precision: ``no``, ``bf16`` or ``fp16``.

    Attributes:
        device: where tensors belong.
    """

    def __init__(self, device: str, precision: str = "no") -> None:
        """See the class."""
        self._accelerator: Any = None
        self.device = torch.device(device)
        if precision == "no" and "WORLD_SIZE" not in os.environ:
            return
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise SystemExit(
                "error: --precision and several GPUs need accelerate: pip install accelerate"
            ) from error
        on_cpu = self.device.type == "cpu"
        self._accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu)
        self.device = self._accelerator.device

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What to call instead of model and optimiser. They stay as they are."""
        if self._accelerator is None:
            return model, optimizer
        wrapped, stepper = self._accelerator.prepare(model, optimizer)
        return wrapped, stepper

    def share(self, rows: Tensor) -> Tensor:
        """Those of the batch's rows that this process computes."""
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return rows
        return rows[self._accelerator.process_index :: self._accelerator.num_processes]

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass."""
        return nullcontext() if self._accelerator is None else self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Gradients of ``loss``, scaled as the precision needs."""
        if self._accelerator is None:
            torch.autograd.backward(loss)
        else:
            self._accelerator.backward(loss)

    def sum(self, value: Tensor) -> Tensor:
        """``value`` added over all processes."""
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return value
        return self._accelerator.reduce(value)  # type: ignore[no-any-return]
