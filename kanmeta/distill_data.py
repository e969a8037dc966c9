"""Batches of inputs for distilling, from tensors or from a loader."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kanmeta.errors import PlanError

__all__ = ["Batches", "held_out_batches"]

_MOST_HELD_OUT = 8


def held_out_batches(number: int) -> int:
    """How many of ``number`` batches are held out: a tenth, 8 at most, at least one."""
    return min(_MOST_HELD_OUT, max(1, number // 10))


class Batches:
    """Inputs of a model: a few batches held out, the others again and again.

    Args:
        data: a tensor of inputs; a tuple of tensors, the positional arguments of the model's
            forward, with as many rows each; or an iterable of batches, such as a ``DataLoader``,
            whose items are a tensor or a tuple or list that starts with one: labels are ignored.
        batch: rows of a batch, where ``data`` is tensors.
        device: where batches go.
        generator: of the order, where ``data`` is tensors.

    Attributes:
        held_out: up to 8 batches, a tenth of the data if that is less, at least one. Of a single
            batch, that batch. Of a loader they are the first ones that it gives, and the first
            ones are passed over each time: where it shuffles, these are others.
    """

    def __init__(
        self,
        data: Tensor | Iterable[Any],
        batch: int,
        device: torch.device,
        generator: torch.Generator | None,
    ) -> None:
        """See the class."""
        self._device, self._generator = device, generator
        self._tensors: tuple[Tensor, ...] | None = None
        self._loader: Iterable[Any] = ()
        if isinstance(data, Tensor):
            self._tensors = (data,)
        elif isinstance(data, tuple) and data and all(isinstance(t, Tensor) for t in data):
            self._tensors = data
        elif isinstance(data, Iterable) and not isinstance(data, str | bytes | dict):
            self._loader = data
        else:
            raise PlanError(
                f"data is a {type(data).__name__}: expected a tensor of inputs, a tuple of tensors "
                'or an iterable of batches such as a DataLoader; without data, None or "normal"'
            )
        if self._tensors is not None:
            rows = {len(t) if t.ndim else 0 for t in self._tensors}
            if len(rows) != 1 or 0 in rows:
                raise PlanError(f"data has tensors of {sorted(rows)} rows: expected one number > 0")
            number = rows.pop()
            order = torch.randperm(number, generator=generator, device="cpu")
            pieces = list(torch.split(order, batch))
            held = held_out_batches(len(pieces))
            self._pieces = torch.cat(pieces[held:]) if len(pieces) > held else order
            self._batch = batch
            self.held_out = [self._rows(p) for p in pieces[:held]]
        else:
            if iter(self._loader) is self._loader:
                raise PlanError(
                    "data is an iterator, which can be read only once: pass the DataLoader itself, "
                    "or a list of batches"
                )
            first, number = [], 0
            for item in itertools.islice(self._loader, 10 * _MOST_HELD_OUT):
                first += [item] if number < _MOST_HELD_OUT else []
                number += 1
            if not first:
                raise PlanError("data gives no batches: expected at least one")
            held = held_out_batches(number)
            self._skip = held if number > held else 0
            self.held_out = [self._arguments(item) for item in first[:held]]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Positional arguments of the model, without end."""
        while True:
            empty = True
            for batch in self.once():
                empty = False
                yield batch
            if empty:
                raise PlanError(
                    "data gives no batches when it is read again: expected the same ones. Pass the "
                    "DataLoader itself, or a list of batches"
                )

    def once(self) -> Iterator[tuple[Tensor, ...]]:
        """Each of the others one time, tensors in a new order."""
        if self._tensors is None:
            yield from map(self._arguments, itertools.islice(self._loader, self._skip, None))
            return
        order = torch.randperm(len(self._pieces), generator=self._generator, device="cpu")
        for piece in torch.split(self._pieces[order], self._batch):
            yield self._rows(piece)

    def _rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        assert self._tensors is not None
        return _usable(tuple(t[rows.to(t.device)].to(self._device) for t in self._tensors))

    def _arguments(self, item: object) -> tuple[Tensor, ...]:
        first = item[0] if isinstance(item, Sequence) and item else item
        if not isinstance(first, Tensor):
            raise PlanError(
                f"data gives a {type(item).__name__} as a batch: expected a tensor of inputs, or a "
                "tuple or list that starts with one. Pass batches of that form"
            )
        return _usable((first.to(self._device),))


def _usable(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The batch; a PlanError if it is empty or a number of its first tensor is NaN or infinite.

    What follows may be a mask, in which infinite numbers have a meaning.
    """
    if batch[0].numel() == 0:
        raise PlanError(
            f"data gives a batch of shape {(*batch[0].shape,)}: expected at least one row"
        )
    good = batch[0].isfinite()
    if not bool(good.all()):
        rows = good.reshape(len(good), -1).all(1) if good.ndim else good[None]
        raise PlanError(
            f"data has NaN or infinite numbers, in {int((~rows).sum())} of {len(rows)} rows of a "
            "batch: expected finite inputs. Take these rows out, or fill them in as for the teacher"
        )
    return tuple(t.clone() if t.is_inference() else t for t in batch)  # autograd may save them
