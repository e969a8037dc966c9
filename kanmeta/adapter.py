"""What an adapter declares of a third-party layer.

An adapter says how to recognise a layer and where its coefficients lie, as data. It knows nothing
of meta-learners, prompts or checkpoints, and never imports the library it describes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kanmeta import layout as layouts
from kanmeta.basis import Basis
from kanmeta.conv_basis import Convolution
from kanmeta.errors import AdapterError

__all__ = ["Adapter", "Container", "Slot", "placeholders"]


@dataclass(frozen=True)
class Slot:
    """One tensor of a layer that holds coefficients of its edges, or one for each group or output.

    Attributes:
        path: where the tensor is, relative to the layer: ``"coef"``, ``"spline_linear.weight"``.
            ``"spline_conv.{g}.weight"`` stands for ``spline_conv.0.weight`` and so on, stacked:
            ``g`` becomes an axis, which ``layout`` does not name again.
        layout: axes as an einops pattern, e.g. ``"o (i k)"``. Axes that are not edge axes of the
            adapter run over the coefficients of one edge. ``1`` is a dimension of size 1; ``...``
            stands for the axes of a convolution kernel, the last one to three of kd, kh, kw, and
            ``1...`` for as many of size 1;
            ``"o (i k) + o i"`` is two layouts one after the other in one tensor.
        scaled_by: path of a per-edge factor that the library multiplies this tensor with. It is
            folded into the generated coefficients and reads as 1 afterwards.
        optional: the library leaves the tensor out under some of its constructor's options.
        stored: the tensor's own axes where ``layout`` is how the library reshapes it.
    """

    path: str
    layout: str
    scaled_by: str | None = None
    optional: bool = False
    stored: str | None = None


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
        free: patterns of paths of tensors that are not looked at: what the user chooses, such as
            norms and activations (``"layer_norm.*"``).
        edges: the edge axes; prompts have shape ``(*edge axes, dim_z)``.
        sizes: ``layer -> {axis: size}``: sizes that shapes cannot tell, from its attributes.
        check: ``(layer, axis sizes) -> reason or None``: what names and shapes cannot tell.
        methods: methods that the class must have; tells families of identical tensors apart.
        broken: why a layer of this kind is never converted, or a function that tells it of a
            layer, or None.
        dead: path -> reason, of plain Parameters that the library never uses.
        writers: method -> advice: methods that write coefficients *and* something else, so that
            they would leave the layer half changed. On a converted layer they raise at once.
        grid_updates: method -> name of the attribute that holds the number of outputs: methods
            that refit the coefficients of each input by a linear map that all its outputs share.
        reindexers: methods that only move edges about, in place or into a new layer.
        settings: paths of attributes on which the layer's function depends, ``"wavelet_type"``. A
            checkpoint holds them, and a layer that has others is not loaded into.
        rows: when its forward treats rows (samples) independently of each other: ``"always"``,
            ``"eval"``: only in evaluation mode, or ``"never"``. Norms among ``free`` are looked at
            in each layer. Rows are the first dimension of the input.
        leading: the input is (*, in): all dimensions but the last are rows, not only the first.
        expands: its forward makes tensors of (rows, outputs, inputs) numbers.
        basis: the functions that a linear layer multiplies its coefficients with, or a convolution
            convolves them with; optional. With them it runs faster and in less memory; that they
            are right is checked on each layer.
    """

    name: str
    class_names: tuple[str, ...]
    slots: tuple[Slot, ...]
    plain: Mapping[str, str] = field(default_factory=dict)
    optional_plain: Mapping[str, str] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    edges: str = "o i"
    sizes: Callable[[nn.Module], Mapping[str, int]] = _no_sizes
    check: Callable[[nn.Module, Mapping[str, int]], str | None] = _nothing_more
    methods: tuple[str, ...] = ()
    broken: str | Callable[[nn.Module], str | None] | None = None
    dead: Mapping[str, str] = field(default_factory=dict)
    writers: Mapping[str, str] = field(default_factory=dict)
    grid_updates: Mapping[str, str] = field(default_factory=dict)
    reindexers: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    rows: str = "never"
    leading: bool = False
    expands: bool = False
    basis: Basis | Convolution | None = None

    def __post_init__(self) -> None:
        """Refuse declarations that contradict themselves."""
        if not isinstance(self.name, str) or not self.name:
            raise AdapterError(f"an adapter's name is a text, not {self.name!r}")
        texts = ("class_names", "free", "methods", "reindexers", "settings")
        for what, kind in (("slots", Slot), *((text, str) for text in texts)):
            value = getattr(self, what)
            if not isinstance(value, tuple) or not all(isinstance(v, kind) for v in value):
                raise AdapterError(
                    f"adapter {self.name!r}: {what} is {value!r}, expected a tuple of "
                    f"{kind.__name__}; of one thing: (thing,)"
                )
        if self.rows not in ("always", "eval", "never"):
            raise AdapterError(
                f"adapter {self.name!r}: rows={self.rows!r}, expected 'always', 'eval' or 'never'"
            )
        if not self.slots or all(slot.optional for slot in self.slots):
            raise AdapterError(f"adapter {self.name!r} needs at least one slot that always exists")
        paths = [slot.path for slot in self.slots] + [*self.plain] + [*self.optional_plain]
        twice = {path for path in paths if paths.count(path) > 1}
        if twice:
            raise AdapterError(f"adapter {self.name!r} declares {sorted(twice)} twice")
        every = [*self.plain.values(), *self.optional_plain.values(), self.edges]
        every += [text for s in self.slots for text in (s.layout, s.stored) if text is not None]
        for text in every:
            if not layouts.is_layout(text):
                raise AdapterError(
                    f"adapter {self.name!r}: {text!r} is no layout. Expected names of axes such "
                    "as 'o i k', 'o (i k)', 'g o (k i) ...', '1 o i 1...' or 'o (i k) + o i'"
                )
        for slot in self.slots:
            has = {*layouts.axes(slot.layout), *placeholders(slot.path)}
            # "..." is no axis yet: a slot without it is one that all kernel positions share.
            missing = {*layouts.axes(layouts.expand(self.edges, ()))} - has
            if missing:
                raise AdapterError(
                    f"adapter {self.name!r}: layout '{slot.layout}' of {slot.path!r} "
                    f"lacks the edge axes {sorted(missing)}"
                )
        unknown = self.dead.keys() - self.plain.keys() - self.optional_plain.keys()
        if unknown:
            raise AdapterError(
                f"adapter {self.name!r}: dead {sorted(unknown)} are not in plain or optional_plain"
            )

    def considers(self, layer: nn.Module) -> bool:
        """Whether the class name of ``layer``, or of a base class, is one of ours."""
        return any(cls.__name__ in self.class_names for cls in type(layer).__mro__)


def placeholders(path: str) -> tuple[str, ...]:
    """Axes that a path stacks over: ``"spline_conv.{g}.weight"`` gives ``("g",)``."""
    return tuple(part[1:-1] for part in path.split(".") if part.startswith("{"))


def _none_dead(model: nn.Module) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Container:
    """A model class of a library whose methods rebuild, copy or store the layers in it.

    Attributes:
        name: for messages.
        class_names: a module is considered if a class of its MRO has one of these names.
        children: names of child modules that it must have.
        reindexers: methods during which the layers are plain ones of the library. What they return
            is converted again where its edges are those that were there before.
        writers: method -> advice: methods that raise while a layer is converted.
        dead: ``model -> paths`` of Parameters that have no effect in its present state.
        revives: methods after which dead Parameters may have an effect.
        store: ``model -> JSON value``: what it keeps outside its state_dict, for a checkpoint.
        restore: ``(model, JSON value) -> undo``: give it to a fresh model.
    """

    name: str
    class_names: tuple[str, ...]
    children: tuple[str, ...] = ()
    reindexers: tuple[str, ...] = ()
    writers: Mapping[str, str] = field(default_factory=dict)
    dead: Callable[[nn.Module], Sequence[str]] = _none_dead
    revives: tuple[str, ...] = ()
    store: Callable[[nn.Module], Any] | None = None
    restore: Callable[[nn.Module, Any], Callable[[], None]] | None = None

    def considers(self, module: nn.Module) -> bool:
        """Whether ``module`` is such a model."""
        named = any(cls.__name__ in self.class_names for cls in type(module).__mro__)
        return named and {*self.children} <= {*module._modules}
