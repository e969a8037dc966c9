"""Which layers share a meta-learner (the paper's Algorithm 2). Pure functions, no model needed."""

import difflib
from collections.abc import Mapping, Sequence

from kanmeta.errors import PlanError

__all__ = ["Clusters", "assign", "kmeans_labels"]

Clusters = int | str | Sequence[Sequence[str]] | Mapping[str, object]
"""Number of clusters, ``"layer"``, lists of layer names, or layer name -> any label."""


def assign(
    clusters: Clusters, names: Sequence[str], kinds: Sequence[str], sizes: Sequence[int]
) -> tuple[list[int], list[str]]:
    """Number of the cluster of each layer.

    Layers of different kind never share a cluster. Labels are numbered by their first layer, so
    that layer 0 is in cluster 0; every number is used.

    Args:
        clusters: what the user asked for; a number is a number of clusters *per kind*.
        names: layer names in the order of execution.
        kinds: kind of each layer, see :attr:`kanmeta.adapter.LayerSpec.kind`.
        sizes: output channels of each layer, what Algorithm 2 clusters.

    Returns:
        (labels, notes): notes say where the result is not literally what was asked for.

    Raises:
        PlanError: not a valid number, an unknown or missing layer, one layer in two clusters, or
            layers of different kind in one cluster.
    """
    notes: list[str] = []
    if isinstance(clusters, bool) or not isinstance(clusters, int | str | Sequence | Mapping):
        raise PlanError(f"clusters={clusters!r}: {_EXPECTED}")
    if isinstance(clusters, str):
        if clusters != "layer":
            raise PlanError(f"clusters={clusters!r}: {_EXPECTED}")
        raw: list[object] = list(names)
    elif isinstance(clusters, int):
        raw = _by_size(clusters, kinds, sizes, notes)
    else:
        raw = _explicit(clusters, names, kinds)
    order = {label: number for number, label in enumerate(dict.fromkeys(raw))}
    return [order[label] for label in raw], notes


_EXPECTED = (
    "expected a number of clusters, 'layer' (one meta-learner a layer), a list of lists of layer "
    "names, or a mapping from layer name to label"
)


def kmeans_labels(sizes: Sequence[int], clusters: int) -> list[int]:
    """Cluster output-channel sizes into ``clusters`` groups by k-means with a fixed seed.

    ``clusters`` must not exceed the number of distinct sizes.
    """
    if clusters == 1:
        return [0] * len(sizes)
    from sklearn.cluster import KMeans  # takes a second to import; most conversions use one cluster

    model = KMeans(n_clusters=clusters, n_init=10, random_state=42)
    return [int(label) for label in model.fit_predict([[float(size)] for size in sizes])]


def _by_size(
    clusters: int, kinds: Sequence[str], sizes: Sequence[int], notes: list[str]
) -> list[object]:
    if clusters < 1:
        raise PlanError(f"clusters={clusters}: at least one meta-learner is needed")
    labels: list[object] = [None] * len(kinds)
    distinct_kinds = list(dict.fromkeys(kinds))
    if len(distinct_kinds) > 1:
        notes.append(
            f"layers of {len(distinct_kinds)} kinds never share a meta-learner: "
            f"{clusters} cluster(s) for each of {'; '.join(distinct_kinds)}"
        )
    for kind in distinct_kinds:
        members = [i for i, k in enumerate(kinds) if k == kind]
        distinct = len({sizes[i] for i in members})
        used = min(clusters, distinct)
        if used < clusters:
            notes.append(
                f"{clusters} clusters asked for, {used} used: the {len(members)} layers of kind "
                f"{kind} have {distinct} distinct output size(s), and a meta-learner no layer "
                "uses would only cost parameters (clusters='layer' gives one a layer)"
            )
        found = kmeans_labels([sizes[i] for i in members], used)
        for i, label in zip(members, found, strict=True):
            labels[i] = (kind, label)
    return labels


def _explicit(
    clusters: Sequence[Sequence[str]] | Mapping[str, object],
    names: Sequence[str],
    kinds: Sequence[str],
) -> list[object]:
    if isinstance(clusters, Mapping):
        pairs = list(clusters.items())
    else:
        if any(isinstance(group, str) or not isinstance(group, Sequence) for group in clusters):
            raise PlanError(f"clusters={clusters!r}: {_EXPECTED}")
        pairs = [(name, number) for number, group in enumerate(clusters) for name in group]
    label_of: dict[str, object] = {}
    for name, label in pairs:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise PlanError(
                f"clusters name the layer {name!r}, which is not among the layers to be "
                f"converted: {', '.join(repr(n) for n in names)}.{hint}"
            )
        if name in label_of:
            raise PlanError(f"clusters name the layer {name!r} twice; name each layer once")
        label_of[name] = label
    missing = [name for name in names if name not in label_of]
    if missing:
        raise PlanError(
            f"clusters do not say where {', '.join(repr(n) for n in missing)} belong(s); "
            "name every layer, or leave layers out of the conversion with exclude="
        )
    kind_of: dict[object, tuple[str, str]] = {}
    for name, kind in zip(names, kinds, strict=True):
        first, expected = kind_of.setdefault(label_of[name], (name, kind))
        if kind != expected:
            raise PlanError(
                f"{first!r} and {name!r} cannot share a meta-learner: their coefficients differ "
                f"({expected} against {kind}); put them into different clusters"
            )
    return [label_of[name] for name in names]
