"""What recognising a layer yields: where the coefficients of its edges lie, with all sizes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kanmeta.basis import Basis
from kanmeta.conv_basis import Convolution
from kanmeta.layout import TAP_AXES, Rearrangement

__all__ = ["ADDED", "CONSTANTS", "LayerSpec", "Methods", "SlotSpec", "tensor_at"]

CONSTANTS = ("coefficient_scale", "coefficient_offset", "coefficient_map")
"""Buffers of a converted layer; the last is None until a grid update."""

ADDED = ("prompts", *CONSTANTS, "meta_learner")
"""All names that a converted layer gains; the last only if it owns its meta-learner."""


@dataclass(frozen=True)
class Methods:
    """Methods of a layer that write coefficients, and what becomes of them after conversion.

    Attributes:
        refused: method -> advice. They would leave the layer half changed, so they raise at once.
        grid_updates: method -> attribute that holds the number of outputs. They refit the
            coefficients of each input by a linear map; see :mod:`kanmeta.edits`.
        reindexers: methods that only move edges about, in place or into a new layer.
        revives: methods of a container after which a frozen Parameter may have an effect.
    """

    refused: tuple[tuple[str, str], ...] = ()
    grid_updates: tuple[tuple[str, str], ...] = ()
    reindexers: tuple[str, ...] = ()
    revives: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlotSpec:
    """A slot as found in one layer: where its tensors and its scaler, if any, lie and how.

    Attributes:
        path: as the adapter declares it, with placeholders.
        paths: of the tensors; several are stacked along a new first dimension.
        requires_grad: of each of them.
        tensor: layout of the one tensor, or of the stack.
        scaled_by: path of the per-edge factor.
        scaler: its layout.
        scaler_requires_grad: whether it is trained.
    """

    path: str
    paths: tuple[str, ...]
    requires_grad: tuple[bool, ...]
    tensor: Rearrangement
    scaled_by: str | None = None
    scaler: Rearrangement | None = None
    scaler_requires_grad: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the path has placeholders."""
        return "{" in self.path

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each tensor."""
        shape = self.tensor.shape
        return (shape[1:],) * len(self.paths) if self.stacked else (shape,)


@dataclass(frozen=True)
class LayerSpec:
    """A recognised layer: E edges with ``dim_w`` coefficients each, spread over ``slots``.

    Attributes:
        adapter: its name.
        class_name: of the layer.
        edge: ``"tap"`` or ``"pair"``.
        edge_axes: names of the edge axes.
        sizes: of all axes.
        slots: the coefficients of an edge, in this order.
        methods: that write coefficients.
        dead: path -> reason, of Parameters that the library never uses.
        dropped: those of them that this conversion takes out: they read as zeros.
        notes: what the plan should say of this layer.
        settings: paths of attributes on which its function depends.
        rows, leading, expands, free, basis: how its forward runs, see :class:`kanmeta.Adapter`.
    """

    adapter: str
    class_name: str
    edge: str
    edge_axes: tuple[str, ...]
    sizes: Mapping[str, int]
    slots: tuple[SlotSpec, ...]
    methods: Methods = field(default_factory=Methods)
    dead: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, tuple[tuple[int, ...], bool]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    rows: str = "never"
    leading: bool = False
    expands: bool = False
    free: tuple[str, ...] = ()
    basis: Basis | Convolution | None = None

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
    def outputs(self) -> int:
        """Number of output channels, all groups together."""
        return math.prod(self.sizes[axis] for axis in self.edge_axes if axis in ("o", "g"))

    @property
    def fan_in(self) -> int:
        """Edges that are summed into one output: all edge axes but those of outputs and groups."""
        return math.prod(self.sizes[a] for a in self.edge_axes if a not in ("o", "g"))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel axes of a convolution; empty for a linear layer."""
        return tuple(self.sizes[axis] for axis in TAP_AXES if axis in self.sizes)

    @property
    def kind(self) -> str:
        """Layers whose coefficients mean the same have equal kinds and may share a meta-learner."""
        parts = [f"{s.path}:{s.tensor.width}" for s in self.slots]
        return f"{self.adapter}({', '.join(parts)})"

    @property
    def requires_grad(self) -> bool:
        """Whether any of its coefficients is trained."""
        return any(wanted for slot in self.slots for wanted in slot.requires_grad)

    @property
    def basis_position(self) -> int | None:
        """Position of the slot with the coefficients of basis functions; None if it is frozen."""
        edges = {*self.edge_axes}
        # Not by comparing slots: torch.compile cannot trace that.
        found = [i for i, slot in enumerate(self.slots) if {*slot.tensor.sizes} - edges]
        return found[0] if found else None

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Shape of the map T of grid updates: ``(*edge axes but o, k, k)``."""
        assert self.basis_position is not None
        width = self.slots[self.basis_position].tensor.width
        return (*(self.sizes[a] for a in self.edge_axes if a != "o"), width, width)

    @property
    def trainable(self) -> dict[str, bool]:
        """Path of each tensor that becomes a generated one -> whether it required a gradient."""
        found = {
            path: wanted
            for slot in self.slots
            for path, wanted in zip(slot.paths, slot.requires_grad, strict=True)
        }
        found |= {s.scaled_by: s.scaler_requires_grad for s in self.slots if s.scaled_by}
        return found | {path: wanted for path, (_, wanted) in self.dropped.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of each tensor that becomes a generated one -> its shape."""
        found = {
            path: shape
            for slot in self.slots
            for path, shape in zip(slot.paths, slot.shapes, strict=True)
        }
        found |= {s.scaled_by: s.scaler.shape for s in self.slots if s.scaled_by and s.scaler}
        return found | {path: shape for path, (shape, _) in self.dropped.items()}

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all tensors that become generated ones."""
        return tuple(self.trainable)

    def read(self, layer: nn.Module) -> Tensor:
        """Coefficients of an unconverted layer, scalers folded in: ``(*edge_shape, dim_w)``."""
        parts = []
        for slot in self.slots:
            tensors = [tensor_at(layer, path) for path in slot.paths]
            part = slot.tensor.to_edges(torch.stack(tensors) if slot.stacked else tensors[0])
            if slot.scaler is not None and slot.scaled_by is not None:
                part = part * slot.scaler.to_edges(tensor_at(layer, slot.scaled_by))
            parts.append(part)
        return torch.cat(parts, dim=-1).detach()

    def split(self, w: Tensor) -> dict[str, Tensor]:
        """Cut ``w`` of shape ``(*edge_shape, dim_w)`` into the library's tensors, by path.

        Each is contiguous and has the library's own layout; scalers are ones, dropped ones zeros.
        """
        tensors: dict[str, Tensor] = {}
        for slot, part in zip(self.slots, torch.split(w, list(self.widths), dim=-1), strict=True):
            whole = slot.tensor.from_edges(part)
            pieces = whole.unbind() if slot.stacked else (whole,)
            tensors |= zip(slot.paths, pieces, strict=True)
            if slot.scaler is not None and slot.scaled_by is not None:
                tensors[slot.scaled_by] = w.new_ones(slot.scaler.shape)
        for path, (shape, _) in self.dropped.items():
            tensors[path] = w.new_zeros(shape)
        return tensors


def tensor_at(layer: nn.Module, path: str) -> Tensor:
    """Return the tensor at a dotted path below ``layer``."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(layer.get_submodule(owner), name)
    assert isinstance(tensor, Tensor)
    return tensor
