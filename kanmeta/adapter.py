"""What an adapter declares of a third-party layer.

An adapter says how to recognise a layer and where its coefficients lie, as data. It knows nothing
of meta-learners, prompts or checkpoints, and never imports the library it describes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kanmeta import layout as layouts
from kanmeta.errors import AdapterError, LayoutError
from kanmeta.layout import Rearrangement
from kanmeta.spec import LayerSpec, SlotSpec

__all__ = ["TAP_AXES", "Adapter", "Slot"]

TAP_AXES = ("kd", "kh", "kw")
"""Names that layouts use for the axes of a convolution kernel."""


@dataclass(frozen=True)
class Slot:
    """One tensor of a layer that holds coefficients of its edges.

    Attributes:
        path: where the tensor is, relative to the layer: ``"coef"``, ``"spline_linear.weight"``.
        layout: its axes as an einops pattern, e.g. ``"o (i k)"``. Axes that are not edge axes of
            the adapter run over the coefficients of one edge.
        scaled_by: path of a per-edge factor that the library multiplies this tensor with. It is
            folded into the generated coefficients and reads as 1 afterwards.
        optional: the library leaves the tensor out under some of its constructor's options.
    """

    path: str
    layout: str
    scaled_by: str | None = None
    optional: bool = False


def _no_sizes(layer: nn.Module) -> Mapping[str, int]:
    return {}


def _nothing_more(layer: nn.Module, sizes: Mapping[str, int]) -> str | None:
    return None


@dataclass(frozen=True)
class Adapter:
    """How to recognise one kind of layer of one library, and where its coefficients lie.

    Attributes:
        name: unique; stored in checkpoints.
        class_names: a layer is considered if a class of its MRO has one of these names.
        slots: the coefficient tensors, in the order in which they make up an edge's vector w.
        plain: path -> layout of the tensors that must exist and are left alone.
        optional_plain: path -> layout of the tensors that may exist and are left alone.
        edges: the edge axes; prompts have shape ``(*edge axes, dim_z)``.
        sizes: ``layer -> {axis: size}``: sizes that shapes cannot tell, from its attributes.
        check: ``(layer, axis sizes) -> reason or None``: what names and shapes cannot tell.
        writers: method -> advice: methods that write coefficients *and* something else, so that
            they would leave the layer half changed. On a converted layer they raise at once.
    """

    name: str
    class_names: tuple[str, ...]
    slots: tuple[Slot, ...]
    plain: Mapping[str, str] = field(default_factory=dict)
    optional_plain: Mapping[str, str] = field(default_factory=dict)
    edges: str = "o i"
    sizes: Callable[[nn.Module], Mapping[str, int]] = _no_sizes
    check: Callable[[nn.Module, Mapping[str, int]], str | None] = _nothing_more
    writers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse declarations that contradict themselves."""
        if not self.slots or all(slot.optional for slot in self.slots):
            raise AdapterError(f"adapter {self.name!r} needs at least one slot that always exists")
        for slot in self.slots:
            missing = set(layouts.axes(self.edges)) - set(layouts.axes(slot.layout))
            if missing:
                raise AdapterError(
                    f"adapter {self.name!r}: layout '{slot.layout}' of {slot.path!r} "
                    f"lacks the edge axes {sorted(missing)}"
                )

    def considers(self, layer: nn.Module) -> bool:
        """Whether the class name of ``layer``, or of a base class, is one of ours."""
        return any(cls.__name__ in self.class_names for cls in type(layer).__mro__)

    def recognise(self, layer: nn.Module, *, edge: str = "tap") -> "LayerSpec":
        """Describe ``layer``.

        Args:
            layer: a module that this adapter considers.
            edge: ``"tap"``: kernel positions of a convolution are edges of their own;
                ``"pair"``: they belong to the coefficients of their channel pair.

        Raises:
            LayoutError: names or shapes of the tensors are not what this adapter declares.
        """
        tensors: dict[str, Tensor] = {}
        tensors |= dict(layer.named_parameters(remove_duplicate=False))
        tensors |= dict(layer.named_buffers(remove_duplicate=False))
        declared = self._layouts()
        required = {s.path for s in self.slots if not s.optional} | set(self.plain)
        missing, extra = required - set(tensors), set(tensors) - set(declared)
        if missing or extra:
            parts = [f"lacks {sorted(missing)}"] if missing else []
            parts += [f"has {sorted(extra)} in addition"] if extra else []
            raise LayoutError(f"the layer {' and '.join(parts)}")
        try:
            known = self.sizes(layer)
        except AttributeError as error:
            raise LayoutError(str(error)) from error
        sizes = layouts.solve({p: (declared[p], tuple(t.shape)) for p, t in tensors.items()}, known)
        reason = self.check(layer, sizes)
        if reason is not None:
            raise LayoutError(reason)
        return self._spec(layer, tensors, sizes, edge)

    def _layouts(self) -> dict[str, str]:
        edges = layouts.axes(self.edges)
        scalers = {
            s.scaled_by: layouts.restrict(s.layout, edges) for s in self.slots if s.scaled_by
        }
        return (
            {s.path: s.layout for s in self.slots}
            | scalers
            | {**self.plain}
            | {**self.optional_plain}
        )

    def _spec(
        self, layer: nn.Module, tensors: dict[str, Tensor], sizes: dict[str, int], edge: str
    ) -> "LayerSpec":
        edges = layouts.axes(self.edges)
        if edge == "pair":
            edges = tuple(axis for axis in edges if axis not in TAP_AXES)
        present = [s for s in self.slots if s.path in tensors]
        # A tensor the user froze stays as it is, unless the whole layer is frozen.
        trainable = [s for s in present if tensors[s.path].requires_grad]
        slots = tuple(
            SlotSpec(
                path=s.path,
                tensor=Rearrangement.of(s.layout, edges, sizes),
                requires_grad=tensors[s.path].requires_grad,
                **self._scaler(s, tensors, edges, sizes),
            )
            for s in trainable or present
        )
        cls = next(c for c in type(layer).__mro__ if c.__name__ in self.class_names)
        return LayerSpec(
            self.name, cls.__name__, edge, edges, sizes, slots, tuple(self.writers.items())
        )

    def _scaler(
        self,
        slot: Slot,
        tensors: Mapping[str, Tensor],
        edges: tuple[str, ...],
        sizes: Mapping[str, int],
    ) -> dict[str, Any]:
        if slot.scaled_by is None or slot.scaled_by not in tensors:
            return {}
        return {
            "scaled_by": slot.scaled_by,
            "scaler": Rearrangement.of(layouts.restrict(slot.layout, edges), edges, sizes),
            "scaler_requires_grad": tensors[slot.scaled_by].requires_grad,
        }
