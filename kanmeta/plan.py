"""The plan of a conversion: all decisions and all errors come before a model is touched."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from kanmeta import clusters as clustering
from kanmeta import graph, policy, registry
from kanmeta.adapter import Adapter
from kanmeta.clusters import Clusters
from kanmeta.discovery import Filter, Found, find_layers, refuse_conflicts, refuse_wrapped
from kanmeta.errors import PlanError
from kanmeta.initialise import INITS
from kanmeta.meta import ACTIVATIONS
from kanmeta.recognition import without_dead
from kanmeta.spec import LayerSpec, tensor_at

__all__ = ["ClusterPlan", "LayerPlan", "Plan", "Settings", "make_plan"]


@dataclass(frozen=True)
class Settings:
    """The arguments of ``convert`` that shape the meta-learners."""

    dim_z: int = 1
    hidden: int = 32
    activation: str = "relu"
    bias: bool = True
    edge: str = "tap"
    init: str = "match"
    execution: str = "auto"
    drop_dead: bool = False

    def check(self) -> None:
        """Raise PlanError for a value outside its range."""
        for name in ("dim_z", "hidden"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PlanError(f"{name}={value!r}: expected a positive integer")
        allowed = {"activation": tuple(ACTIVATIONS), "edge": ("tap", "pair"), "init": INITS}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise PlanError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}"
                )
        for name in ("bias", "drop_dead"):
            if not isinstance(getattr(self, name), bool):
                raise PlanError(f"{name}={getattr(self, name)!r}: expected True or False")
        policy.check(self.execution)

    def meta_parameters(self, dim_w: int) -> int:
        """Parameters of one meta-learner."""
        biases = self.hidden + dim_w if self.bias else 0
        return self.hidden * (self.dim_z + dim_w) + biases


@dataclass(frozen=True)
class LayerPlan:
    """One layer to convert. ``aliases``: further names under which the same layer is registered."""

    name: str
    aliases: tuple[str, ...]
    spec: LayerSpec
    cluster: int
    before: int

    @property
    def label(self) -> str:
        """Name for people: the root module's is empty."""
        return self.name or "(root)"


@dataclass(frozen=True)
class ClusterPlan:
    """Layers that share one meta-learner of ``parameters`` numbers."""

    index: int
    layers: tuple[str, ...]
    kind: str
    dim_w: int
    parameters: int


@dataclass(frozen=True)
class Plan:
    """What ``convert`` is going to do. ``print(plan)`` is the dry run.

    Attributes:
        settings: the arguments.
        layers: in the order of execution.
        clusters: in the order of their first layers.
        order_source: where the order comes from, see :mod:`kanmeta.graph`.
        notes: what a user should know before agreeing.
        skipped: layers that look like ones of a KAN library and stay as they are, and why.
        parameters_before, parameters_after: all Parameters of the model, frozen ones included.
    """

    settings: Settings
    layers: tuple[LayerPlan, ...]
    clusters: tuple[ClusterPlan, ...]
    order_source: str
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        """Table of layers, meta-learners, totals and notes."""
        s = self.settings
        rows = [("layer", "adapter", "class", "edges", "dim_w", "meta-learner", "parameters")]
        rows += [
            (
                layer.label,
                layer.spec.adapter,
                layer.spec.class_name,
                " x ".join(map(str, layer.spec.edge_shape)),
                str(layer.spec.dim_w),
                f"#{layer.cluster}",
                f"{layer.before:,} -> {layer.spec.edges * s.dim_z:,}",
            )
            for layer in self.layers
        ]
        width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, width, strict=True)).rstrip() for r in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        lines += [
            f"meta-learner #{c.index}: {s.dim_z} -> {s.hidden} {s.activation} -> {c.dim_w}, "
            f"{c.parameters:,} parameters, shared by {len(c.layers)} layer(s)"
            for c in self.clusters
        ]
        lines.append(
            f"model: {self.parameters_before:,} -> {self.parameters_after:,} parameters "
            f"({self.parameters_before / max(self.parameters_after, 1):.2f}x), "
            f"order of layers: {self.order_source}"
        )
        lines += [f"left as it is: {text}" for text in self.skipped]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def make_plan(
    model: nn.Module,
    *,
    settings: Settings,
    clusters: Clusters = 1,
    adapters: Sequence[Adapter] = (),
    include: Filter | None = None,
    exclude: Filter | None = None,
    example_inputs: Sequence[object] | None = None,
) -> Plan:
    """Decide everything about a conversion; see :func:`kanmeta.plan` for the arguments."""
    settings.check()
    if not isinstance(model, nn.Module):
        raise PlanError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    refuse_wrapped(model)
    found, skipped = find_layers(
        model, registry.all_adapters(adapters), settings.edge, include, exclude
    )
    if settings.drop_dead:
        found = [replace(item, spec=without_dead(item.spec, item.layer)) for item in found]
    refuse_conflicts(model, found)
    order, source = graph.execution_order(
        model, {item.names[0]: item.layer for item in found}, example_inputs
    )
    found.sort(key=lambda item: order.index(item.names[0]))
    labels, cluster_notes = clustering.assign(
        clusters,
        [item.names[0] for item in found],
        [item.spec.kind for item in found],
        [item.spec.outputs for item in found],
    )
    policy.check_layers(settings.execution, {item.names[0]: item.spec for item in found})
    notes = _notes(model, found, settings.drop_dead) + cluster_notes
    planned = tuple(
        LayerPlan(
            name=item.names[0],
            aliases=item.names[1:],
            spec=item.spec,
            cluster=label,
            before=sum(tensor_at(item.layer, path).numel() for path in item.spec.paths),
        )
        for item, label in zip(found, labels, strict=True)
    )
    groups = tuple(_cluster(i, planned, settings) for i in range(max(labels) + 1))
    before = sum(p.numel() for p in model.parameters())
    after = before - sum(layer.before for layer in planned)
    after += sum(layer.spec.edges * settings.dim_z for layer in planned)
    after += sum(group.parameters for group in groups)
    if after > before:
        notes.append(_break_even(planned, settings, before, after))
    return Plan(settings, planned, groups, source, tuple(notes), tuple(skipped), before, after)


def _notes(model: nn.Module, found: Sequence[Found], drop_dead: bool) -> list[str]:
    """What the layers' adapters and the containers around them have to say, each text once."""
    layers_of: dict[str, list[str]] = {}
    for item in found:
        for text in item.spec.notes:
            layers_of.setdefault(text, []).append(item.names[0] or "(root)")
    notes = [f"{text} ({', '.join(names)})" for text, names in layers_of.items()]
    for name, module in model.named_modules():
        container = registry.container_of(module)
        dead = () if container is None else container.dead(module)
        if dead and any(item.layer in {*module.modules()} for item in found):
            number = sum(tensor_at(module, path).numel() for path in dead)
            what = "are frozen" if drop_dead else "drop_dead=True freezes them"
            notes.append(
                f"{number:,} numbers of {name or 'the model'} have no effect as it is "
                f"({', '.join(dead)}); {what}"
            )
    return notes


def _cluster(index: int, layers: Sequence[LayerPlan], settings: Settings) -> ClusterPlan:
    members = [layer for layer in layers if layer.cluster == index]
    spec = members[0].spec
    return ClusterPlan(
        index=index,
        layers=tuple(layer.name for layer in members),
        kind=spec.kind,
        dim_w=spec.dim_w,
        parameters=settings.meta_parameters(spec.dim_w),
    )


def _break_even(layers: Sequence[LayerPlan], settings: Settings, before: int, after: int) -> str:
    saved = [layer.before // layer.spec.edges - settings.dim_z for layer in layers]
    text = f"the conversion makes the model larger ({before:,} -> {after:,} parameters)"
    if min(saved) <= 0:
        return f"{text}: prompts of dim_z={settings.dim_z} numbers are no shorter than dim_w"
    needed = settings.meta_parameters(layers[0].spec.dim_w) // saved[0] + 1
    return (
        f"{text}: with hidden={settings.hidden} a meta-learner pays from {needed} edges on that "
        "share it; use a smaller hidden= or fewer clusters"
    )
