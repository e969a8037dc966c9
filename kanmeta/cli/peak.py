"""Peak memory of a function by counting the bytes of the tensors that are alive."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveTensors", "peak_bytes"]


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages of all results of operations that are still alive: now, and at most."""

    def __init__(self) -> None:
        """Count from nothing; enter the counter, or :meth:`add` what exists already."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor``, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return
        self._known[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and count its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


def peak_bytes(function: Callable[[], object], alive: Sequence[Tensor]) -> int:
    """Most bytes of tensors that are alive at once while ``function`` runs, as torch dispatches it.

    Args:
        function: what to run; nothing of it compiled.
        alive: tensors that exist before.
    """
    counter = LiveTensors()
    for tensor in alive:
        counter.add(tensor)
    with counter:
        function()
    return counter.peak
