"""Buffers of a pass over tiles: allocated for the first tile and used again by all others."""

import math

import torch
from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """Buffers by name. What :meth:`take` returns holds until the same name is taken again.

    Args:
        like: tensor whose dtype and device the buffers have.
    """

    def __init__(self, like: Tensor) -> None:
        """Nothing is allocated yet."""
        self._like = like
        self._flat: dict[str, Tensor] = {}
        self._views: dict[tuple[object, ...], Tensor] = {}
        self._parts: dict[int, Scratch] = {}

    def part(self, number: int) -> "Scratch":
        """Buffers of their own, for one of several users that take the same names."""
        if number not in self._parts:
            self._parts[number] = Scratch(self._like)
        return self._parts[number]

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Contiguous tensor of ``shape``, not initialised; a name has one dtype."""
        key = (name, *shape)
        view = self._views.get(key)
        if view is None:
            size = math.prod(shape)
            flat = self._flat.get(name)
            if flat is None or flat.numel() < size:
                self._views = {k: v for k, v in self._views.items() if k[0] != name}
                flat = self._like.new_empty(size, dtype=dtype or self._like.dtype)
                self._flat[name] = flat
            view = self._views[key] = flat[:size].view(shape)
        return view
