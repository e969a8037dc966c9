"""Matching what an adapter declares against the tensors of one layer."""

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kanmeta import layout as layouts
from kanmeta.adapter import Adapter, Slot, placeholders
from kanmeta.errors import AdapterError, BrokenLayerError, LayoutError
from kanmeta.layout import TAP_AXES, Rearrangement
from kanmeta.spec import LayerSpec, Methods, SlotSpec, tensor_at

__all__ = ["CheckFailedError", "OtherTensorsError", "describe", "without_dead"]


class OtherTensorsError(LayoutError):
    """The layer has not the tensors that the adapter names: the farthest of all misses."""


class CheckFailedError(LayoutError):
    """Names and shapes are those of the adapter: the nearest of all misses."""


def describe(
    adapter: Adapter, layer: nn.Module, edge: str, only: Collection[str] | None = None
) -> LayerSpec:
    """Describe ``layer`` as ``adapter`` sees it, whatever the name of its class is.

    Args:
        adapter: what to compare with.
        layer: a module.
        edge: ``"tap"``: kernel positions of a convolution are edges of their own;
            ``"pair"``: they belong to the coefficients of their channel pair.
        only: paths of the slots to convert, whether they are trained or not.

    Raises:
        LayoutError: names or shapes of the tensors are not what ``adapter`` declares.
        BrokenLayerError: they are, but layers of this kind cannot be converted.
    """
    tensors = _tensors(adapter, layer)
    lacking = [name for name in adapter.methods if not hasattr(type(layer), name)]
    if lacking:
        raise OtherTensorsError(f"the layer has no method {', '.join(lacking)}")
    found, counts = _match(adapter, tensors)
    known = _sizes(adapter, layer) | counts
    declared = _layouts(adapter)
    kernels = {
        layouts.taps(declared[template], tensors[path].dim())
        for template, paths in found.items()
        for path in paths
    } - {()}
    if len(kernels) > 1:
        raise LayoutError(f"its tensors have kernel axes of different number: {sorted(kernels)}")
    kernel = next(iter(kernels), ())
    sizes = layouts.solve(
        {
            path: (layouts.expand(declared[template], kernel), tuple(tensors[path].shape))
            for template, paths in found.items()
            for path in paths
        },
        known,
    )
    reason = _ask(adapter, "check", layer, sizes)
    if reason is not None:
        raise CheckFailedError(reason)
    broken = adapter.broken(layer) if callable(adapter.broken) else adapter.broken
    if broken is not None:
        raise BrokenLayerError(broken)
    return _spec(adapter, layer, tensors, found, sizes, kernel, edge, only)


def _ask(adapter: Adapter, what: str, *args: Any) -> Any:
    """Call a function of an adapter's; a fault of its own is reported as one."""
    try:
        return getattr(adapter, what)(*args)
    except LayoutError:
        raise
    except AttributeError as error:
        raise LayoutError(str(error)) from error  # of the layer, which lacks it
    except Exception as error:
        raise AdapterError(
            f"{what} of adapter {adapter.name!r} failed on a {type(args[0]).__name__}: {error!r}"
        ) from error


def _sizes(adapter: Adapter, layer: nn.Module) -> dict[str, int]:
    sizes = _ask(adapter, "sizes", layer)
    if not isinstance(sizes, Mapping) or not all(type(n) is int for n in sizes.values()):
        raise AdapterError(
            f"sizes of adapter {adapter.name!r} returned {sizes!r}; expected {{axis: integer}}"
        )
    return dict(sizes)


def _tensors(adapter: Adapter, layer: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of ``layer`` by path, those apart that an adapter does not look at."""
    every: dict[str, Tensor] = {}
    every |= dict(layer.named_parameters(remove_duplicate=False))
    every |= dict(layer.named_buffers(remove_duplicate=False))
    return {
        path: tensor
        for path, tensor in every.items()
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in adapter.free)
    }


def _match(
    adapter: Adapter, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Paths in the layer of each declared path, and the number of each placeholder.

    Raises:
        LayoutError: a tensor is missing, or there is one more.
    """
    found: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for template in _layouts(adapter):
        names = placeholders(template)
        pattern = re.compile(re.sub(r"\\\{\w+\\\}", r"(\\d+)", re.escape(template)))
        hits = [match for path in tensors if (match := pattern.fullmatch(path))]
        if not hits:
            continue
        for position, axis in enumerate(names):
            number = 1 + max(int(hit[position + 1]) for hit in hits)
            if counts.setdefault(axis, number) != number:
                raise LayoutError(f"{template}: {number} of {axis}, elsewhere {counts[axis]}")
        ranges = [range(counts[axis]) for axis in names]
        found[template] = [
            template.format(**dict(zip(names, index, strict=True)))
            for index in itertools.product(*ranges)
        ]
    required = {s.path for s in adapter.slots if not s.optional} | {*adapter.plain}
    paths = {path for each in found.values() for path in each}
    missing = sorted((required - found.keys()) | (paths - tensors.keys()))
    extra = sorted(tensors.keys() - paths)
    if missing or extra:
        parts = [f"lacks {missing}"] if missing else []
        parts += [f"has {extra} in addition"] if extra else []
        raise OtherTensorsError(f"the layer {' and '.join(parts)}")
    return found, counts


def _layouts(adapter: Adapter) -> dict[str, str]:
    """Layout that each declared path has in the layer."""
    edges = layouts.axes(layouts.expand(adapter.edges, ()))
    scalers = {s.scaled_by: layouts.restrict(s.layout, edges) for s in adapter.slots if s.scaled_by}
    slots = {s.path: s.stored or s.layout for s in adapter.slots}
    return slots | scalers | {**adapter.plain} | {**adapter.optional_plain}


def _spec(
    adapter: Adapter,
    layer: nn.Module,
    tensors: Mapping[str, Tensor],
    found: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int],
    kernel: tuple[str, ...],
    edge: str,
    only: Collection[str] | None,
) -> LayerSpec:
    edges = layouts.axes(layouts.expand(adapter.edges, kernel))
    if edge == "pair":
        edges = tuple(axis for axis in edges if axis not in TAP_AXES)
    present = [s for s in adapter.slots if s.path in found]
    # A tensor the user froze stays as it is, unless the whole layer is frozen.
    trained = [s for s in present if any(tensors[p].requires_grad for p in found[s.path])]
    chosen = (trained or present) if only is None else [s for s in present if s.path in only]
    slots, notes = [], []
    for slot in chosen:
        stack = placeholders(slot.path)
        layout = layouts.expand(slot.layout, kernel)
        if not {*edges} <= {*layouts.axes(layout), *stack}:
            notes.append(
                f"{slot.path} has no kernel axes and stays plain with edge='tap'; "
                "edge='pair' converts it too"
            )
            continue
        prefix = f"({' '.join(stack)}) " if stack else ""
        slots.append(
            SlotSpec(
                path=slot.path,
                paths=tuple(found[slot.path]),
                requires_grad=tuple(tensors[p].requires_grad for p in found[slot.path]),
                tensor=Rearrangement.of(
                    prefix + layout,
                    edges,
                    sizes,
                    None if slot.stored is None else prefix + layouts.expand(slot.stored, kernel),
                ),
                **_scaler(slot, tensors, edges, sizes),
            )
        )
    dead = {path: reason for path, reason in adapter.dead.items() if path in tensors}
    notes += [f"{path} is dead: {reason}" for path, reason in dead.items()]
    return LayerSpec(
        adapter=adapter.name,
        class_name=type(layer).__name__,
        edge=edge,
        edge_axes=edges,
        sizes=sizes,
        slots=tuple(slots),
        methods=Methods(
            tuple(adapter.writers.items()), tuple(adapter.grid_updates.items()), adapter.reindexers
        ),
        dead=dead,
        notes=tuple(notes),
        settings=adapter.settings,
    )


def without_dead(spec: LayerSpec, layer: nn.Module) -> LayerSpec:
    """Let a conversion take out the Parameters of ``layer`` that the library never uses."""
    tensors = {path: tensor_at(layer, path) for path in spec.dead}
    dropped = {path: (tuple(t.shape), t.requires_grad) for path, t in tensors.items()}
    return dataclasses.replace(spec, dropped=dropped)


def _scaler(
    slot: Slot, tensors: Mapping[str, Tensor], edges: tuple[str, ...], sizes: Mapping[str, int]
) -> dict[str, Any]:
    if slot.scaled_by is None or slot.scaled_by not in tensors:
        return {}
    return {
        "scaled_by": slot.scaled_by,
        "scaler": Rearrangement.of(layouts.restrict(slot.layout, edges), edges, sizes),
        "scaler_requires_grad": tensors[slot.scaled_by].requires_grad,
    }
