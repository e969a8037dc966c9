"""What recognising a layer yields: where the coefficients of its edges lie, with all sizes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kanmeta.layout import Rearrangement

__all__ = ["LayerSpec", "SlotSpec", "tensor_at"]


@dataclass(frozen=True)
class SlotSpec:
    """A slot as found in one layer: where its tensor and its scaler, if any, lie and how."""

    path: str
    tensor: Rearrangement
    requires_grad: bool
    scaled_by: str | None = None
    scaler: Rearrangement | None = None
    scaler_requires_grad: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """A recognised layer: E edges with ``dim_w`` coefficients each, spread over ``slots``."""

    adapter: str
    class_name: str
    edge: str
    edge_axes: tuple[str, ...]
    sizes: Mapping[str, int]
    slots: tuple[SlotSpec, ...]
    writers: tuple[tuple[str, str], ...] = ()

    @property
    def edge_shape(self) -> tuple[int, ...]:
        """Sizes of the edge axes; their product is the number of edges."""
        return tuple(self.sizes[axis] for axis in self.edge_axes)

    @property
    def edges(self) -> int:
        """Number of edges E."""
        return math.prod(self.edge_shape)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of coefficients of an edge in each slot."""
        return tuple([slot.tensor.width for slot in self.slots])

    @property
    def dim_w(self) -> int:
        """Number of coefficients of an edge."""
        return sum(self.widths)

    @property
    def fan_in(self) -> int:
        """Edges that are summed into one output: all edge axes but those of outputs and groups."""
        return math.prod(self.sizes[a] for a in self.edge_axes if a not in ("o", "g"))

    @property
    def kind(self) -> str:
        """Layers whose coefficients mean the same have equal kinds and may share a meta-learner."""
        parts = [f"{s.path}:{s.tensor.width}" for s in self.slots]
        return f"{self.adapter}({', '.join(parts)})"

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all tensors that become generated ones."""
        scalers = tuple(s.scaled_by for s in self.slots if s.scaled_by is not None)
        return tuple(s.path for s in self.slots) + scalers

    def read(self, layer: nn.Module) -> Tensor:
        """Coefficients of an unconverted layer, scalers folded in: ``(*edge_shape, dim_w)``."""
        parts = []
        for slot in self.slots:
            part = slot.tensor.to_edges(tensor_at(layer, slot.path))
            if slot.scaler is not None and slot.scaled_by is not None:
                part = part * slot.scaler.to_edges(tensor_at(layer, slot.scaled_by))
            parts.append(part)
        return torch.cat(parts, dim=-1).detach()

    def split(self, w: Tensor) -> dict[str, Tensor]:
        """Cut ``w`` of shape ``(*edge_shape, dim_w)`` into the library's tensors, by path.

        Each is contiguous and has the library's own layout; scalers are ones.
        """
        tensors: dict[str, Tensor] = {}
        for slot, part in zip(self.slots, torch.split(w, list(self.widths), dim=-1), strict=True):
            tensors[slot.path] = slot.tensor.from_edges(part)
            if slot.scaler is not None and slot.scaled_by is not None:
                tensors[slot.scaled_by] = w.new_ones(slot.scaler.shape)
        return tensors


def tensor_at(layer: nn.Module, path: str) -> Tensor:
    """Return the tensor at a dotted path below ``layer``."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(layer.get_submodule(owner), name)
    assert isinstance(tensor, Tensor)
    return tensor
