"""Finding out on a few numbers whether a forward treats rows independently.

An adapter says so of its library's forward; the class at hand may be a copy that somebody changed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from kanmeta.fast import TOLERANCES

__all__ = ["rows_are_independent", "without_dropout"]


def rows_are_independent(run: Callable[[Tensor], Any], x: Tensor, axis: int) -> bool:
    """Whether two random rows give together what each gives alone.

    Args:
        run: the forward; what it draws at random is not seen by the caller's generators.
        x: an input whose shape but for ``axis``, dtype and device the rows have.
        axis: of the rows.

    Returns:
        True as well if ``run`` draws random numbers: then there is nothing to compare.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (*x.shape[:axis], 2, *x.shape[axis + 1 :])
    rows = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(x)
    devices = [] if x.device.type == "cpu" else [x.device]
    # Checkpointing, which counts what is saved, sees nothing of this.
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            before = torch.get_rng_state()
            both = _tensors(run(rows))
            one, other = (_tensors(run(row)) for row in torch.split(rows, 1, axis))
            if not torch.equal(before, torch.get_rng_state()):
                return True
            if any(b.shape[axis] != 2 for b in both):  # rows of several dimensions are made one
                return False
            pairs = [(b, torch.cat([p, q], axis)) for b, p, q in zip(both, one, other, strict=True)]
        except (RuntimeError, ValueError, IndexError, TypeError):  # what cannot run cannot be cut
            return False
    return all(_close(b, joined) for b, joined in pairs)


def without_dropout(layer: nn.Module) -> nn.Module:
    """Switch the dropout of ``layer`` off, in place: it would hide what is compared."""
    for module in layer.modules():
        if isinstance(module, _DropoutNd):
            module.training = False
    return layer


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    """Outputs that blocks of rows can be joined for; of others :mod:`kanmeta.stream` complains."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return outputs if all(isinstance(t, Tensor) for t in outputs) else ()


def _close(a: Tensor, b: Tensor) -> bool:
    bound = TOLERANCES.get(a.dtype, 2e-2) * (1 + float(b.float().norm()))
    return a.shape == b.shape and float((a.double() - b.double()).norm()) <= bound
