"""Which layers and edges a picture shows, and their vectors; no matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta.errors import PlanError
from kanmeta.spec import LayerSpec
from kanmeta.surgery import bindings
from kanmeta.univariate import Edge, layer_specs

__all__ = ["coefficients_of", "edges_of", "known", "layer_named", "stacked"]

_EDGES = 150  # rows of a heat map


def layer_named(model: nn.Module, name: str | None) -> tuple[str, LayerSpec]:
    """Name and spec of a KAN layer; None: of the first.

    Raises:
        PlanError: there is none of that name.
    """
    specs = layer_specs(model)
    name = known(None if name is None else [name], specs)[0]
    return name, specs[name]


def known(wanted: Sequence[str] | None, there: Mapping[str, Any]) -> list[str]:
    """Return the names that are wanted, all of them for None.

    Raises:
        PlanError: one is not among the keys of ``there``.
    """
    unknown = [name for name in wanted or () if name not in there]
    if unknown or not (wanted is None or wanted):
        raise PlanError(
            f"no KAN layer is called {', '.join(map(repr, unknown)) or wanted}; there are "
            f"{', '.join(map(repr, there))}"
        )
    return [*(there if wanted is None else wanted)]


def edges_of(spec: LayerSpec, wanted: Sequence[Edge] | None, most: int) -> list[Edge]:
    """Return the edges that are wanted; for None at most ``most``, evenly spread.

    Raises:
        PlanError: the layer has no such edge, or none is wanted.
    """
    shape = spec.outputs, spec.sizes["i"] * spec.sizes.get("g", 1)
    if wanted is None:
        return [(p // shape[1], p % shape[1]) for p in _spread(shape[0] * shape[1], most).tolist()]
    for edge in wanted:
        if len(edge) != 2 or not all(0 <= n < size for n, size in zip(edge, shape, strict=True)):
            raise PlanError(f"edge {edge}: expected (output, input) below {shape}")
    if not wanted:
        raise PlanError("edges=[]: expected (output, input) pairs, or None")
    return [*wanted]


@torch.no_grad()
def coefficients_of(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """Coefficients ``(*edge_shape, dim_w)`` by layer; for None of all layers like the first.

    Raises:
        PlanError: there is no such layer, or their ``dim_w`` differ.
    """
    specs = layer_specs(model)
    names = known(layers, specs)
    if layers is None:
        names = [name for name in names if specs[name].kind == specs[names[0]].kind]
    widths = {specs[name].dim_w for name in names}
    if len(widths) > 1:
        raise PlanError(f"layers have {sorted(widths)} coefficients an edge; draw them one by one")
    converted = dict(bindings(model))
    return {
        name: converted[name].coefficients()
        if name in converted
        else specs[name].read(model.get_submodule(name))
        for name in names
    }


def stacked(of: Mapping[str, Tensor]) -> tuple[Tensor, list[str], list[int]]:
    """Vectors of at most 150 edges, evenly spread ``(E, n)``; their names; where layers begin.

    Args:
        of: layer -> ``(*edge_shape, n)``.

    Raises:
        PlanError: numbers of an edge that is drawn are not finite.
    """
    sizes = [t.shape[:-1].numel() for t in of.values()]
    chosen = _spread(sum(sizes), _EDGES)
    rows: list[Tensor] = []
    names: list[str] = []
    cuts: list[int] = []
    start = 0
    for (layer, t), size in zip(of.items(), sizes, strict=True):
        places = chosen[(chosen >= start) & (chosen < start + size)] - start
        cuts += [len(names)] if names else []
        rows.append(t.reshape(size, -1)[places.to(t.device)].double().cpu())
        if not rows[-1].isfinite().all():
            raise PlanError(
                f"{layer or '(root)'} has numbers that are not finite: training has diverged. Draw "
                "a model saved before, or the other layers with layers="
            )
        axes = torch.unravel_index(places, t.shape[:-1])
        names += [f"{layer} {','.join(map(str, e))}" for e in torch.stack(axes, 1).tolist()]
        start += size
    return torch.cat(rows), names, cuts


def _spread(total: int, most: int) -> Tensor:
    return torch.linspace(0, total - 1, min(total, most), dtype=torch.float64).round().long()
