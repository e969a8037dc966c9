"""The verbs: ``plan``, ``convert``, ``materialize``."""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import initialise
from kanmeta.access import complete_layers, converted_layers
from kanmeta.adapter import Adapter
from kanmeta.clusters import Clusters
from kanmeta.discovery import Filter
from kanmeta.distill import distill as run_distill
from kanmeta.errors import LargerModelWarning, PlanError, SkippedLayerWarning
from kanmeta.initialise import LayerInit
from kanmeta.meta import MetaLearner
from kanmeta.plan import ClusterPlan, LayerPlan, Plan, Settings, make_plan
from kanmeta.surgery import Installation, install, install_containers, uninstall

__all__ = ["apply_plan", "convert", "materialize", "plan"]


def plan(
    model: nn.Module,
    *,
    clusters: Clusters = 1,
    dim_z: int = 1,
    hidden: int = 32,
    activation: str = "relu",
    bias: bool = True,
    edge: str = "tap",
    init: str = "match",
    execution: str = "auto",
    drop_dead: bool = False,
    adapters: Sequence[Adapter] = (),
    include: Filter | None = None,
    exclude: Filter | None = None,
    example_inputs: Sequence[object] | None = None,
) -> Plan:
    """Say what :func:`convert` would do with the same arguments. No side effect.

    >>> planned = kanmeta.plan(KAN([64, 32, 10]), dim_z=2)
    >>> planned.parameters_before, planned.parameters_after
    (23680, 5129)
    >>> print(planned)                                                  # doctest: +ELLIPSIS
    layer     adapter        class      edges    dim_w  meta-learner  parameters
    ...

    Args and errors: see :func:`convert`.
    """
    settings = Settings(dim_z, hidden, activation, bias, edge, init, execution, drop_dead)
    return make_plan(
        model,
        settings=settings,
        clusters=clusters,
        adapters=adapters,
        include=include,
        exclude=exclude,
        example_inputs=example_inputs,
    )


def convert(
    model: nn.Module,
    *,
    clusters: Clusters = 1,
    dim_z: int = 1,
    hidden: int = 32,
    activation: str = "relu",
    bias: bool = True,
    edge: str = "tap",
    init: str = "match",
    execution: str = "auto",
    drop_dead: bool = False,
    adapters: Sequence[Adapter] = (),
    include: Filter | None = None,
    exclude: Filter | None = None,
    example_inputs: Sequence[object] | None = None,
    distill: bool | Tensor | Iterable[Any] | str | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Turn the KAN layers of ``model`` into MetaKAN layers, in place.

    The coefficients w_e of every edge e are replaced by a prompt z_e and generated as
    w_e = offset + scale * M(z_e) by a meta-learner M that the layers of a cluster share (MetaKAN,
    ICML 2025, Eq. 8 and 13). The library's own forward runs unchanged. What the layers had learnt
    is only kept with ``distill``. Create optimisers afterwards: the old Parameters are gone.

    >>> model = KAN([64, 32, 10])
    >>> kanmeta.convert(model, dim_z=2) is model
    True
    >>> model.layers[0].spline_weight.shape          # generated whenever it is read
    torch.Size([32, 64, 8])

    Args:
        model: any module that contains layers an adapter knows; it may be one itself.
        clusters: number of meta-learners per kind of layer (k-means over output sizes, the paper's
            Algorithm 2), ``"layer"`` for one a layer, lists of layer names, or name -> label.
        dim_z: numbers in a prompt.
        hidden: width of the meta-learners' hidden layer.
        activation: ``"relu"``, ``"gelu"``, ``"silu"``, ``"tanh"`` or ``"identity"``.
        bias: whether the meta-learners have biases.
        edge: for convolutions, ``"tap"`` for one prompt per kernel position (the paper's Eq. 20),
            ``"pair"`` for one per channel pair.
        init: ``"match"`` starts with the mean and spread of the library's own coefficients, per
            layer and slot; ``"paper"`` is Xavier-normal with zero biases.
        execution: ``"materialize"``, ``"regenerate"``, ``"stream"``, or ``"auto"`` to let kanmeta
            choose; see :func:`set_execution`.
        drop_dead: take out numbers that have no effect. Wav-KAN's ``weight1`` then reads as
            zeros; pykan's affine numbers of edges that are not symbolic are no longer trained,
            until ``fix_symbolic`` or :func:`materialize`.
        adapters: asked before all others.
        include: glob pattern(s) or ``(name, layer) -> bool``: convert only these layers.
        exclude: likewise, convert all but these.
        example_inputs: positional arguments of ``model.forward``. Only needed to tell the order of
            layers where the model cannot be traced.
        distill: keep what the layers have learnt: True, from their coefficients alone; "normal",
            from what these do at standard normal inputs; or inputs without labels, much better: a
            tensor, a tuple of them or an iterable of batches. See :func:`kanmeta.distill`, which
            takes more arguments and returns a report; here it is logged. An interruption leaves
            the model converted, the best state so far in it.
        generator: CPU generator for the first values; default: torch's global one.

    Returns:
        ``model`` itself.

    Raises:
        NothingToConvertError: no layer is recognised; the message says what was seen.
        AlreadyConvertedError: a layer is converted already.
        WrappedModelError: the model is wrapped (DDP, ``torch.compile``, TorchScript).
        PlanError: an argument does not fit the model, or coefficients are not finite.
        After any error the model is as it was before.

    Warns:
        SkippedLayerWarning: a layer looks like one of a KAN library and stays as it is.
        LargerModelWarning: the model grows; the message says from how many edges on it would not.
    """
    planned = plan(
        model,
        clusters=clusters,
        dim_z=dim_z,
        hidden=hidden,
        activation=activation,
        bias=bias,
        edge=edge,
        init=init,
        execution=execution,
        drop_dead=drop_dead,
        adapters=adapters,
        include=include,
        exclude=exclude,
        example_inputs=example_inputs,
    )
    initialise.check_generator(generator)
    if planned.parameters_after > planned.parameters_before:
        warnings.warn(planned.notes[-1], LargerModelWarning, stacklevel=2)
    for text in planned.skipped:
        warnings.warn(f"left as it is: {text}", SkippedLayerWarning, stacklevel=2)
    if distill is None or distill is False:
        apply_plan(model, planned, generator)
        return model
    teacher = copy.deepcopy(model)
    undo = apply_plan(model, planned, generator)
    prompts = first = torch.empty(0)
    try:
        prompts = next(iter(complete_layers(model).values())).prompts
        first = prompts.detach().clone()
        data = None if distill is True else distill
        run_distill(model, teacher, data=data, generator=generator)
    except BaseException as error:
        # An interruption leaves the best state so far, once there is any.
        if isinstance(error, Exception) or torch.equal(prompts, first):
            undo()
        raise
    return model


@torch.inference_mode(False)
def apply_plan(
    model: nn.Module, planned: Plan, generator: torch.Generator | None
) -> Callable[[], None]:
    """Draw first values and install them; nothing is touched before all values exist.

    Returns:
        A function that undoes it.
    """
    mode = planned.settings.execution
    ready: dict[str, Installation] = {}
    for cluster in planned.clusters:
        members = [layer for layer in planned.layers if layer.cluster == cluster.index]
        meta, values = _draw(model, planned.settings, cluster, members, generator)
        ready |= {
            layer.name: (layer.name, model.get_submodule(layer.name), layer.spec, value, meta, mode)
            for layer, value in zip(members, values, strict=True)
        }
    with ExitStack() as undo:
        undo.callback(install([ready[layer.name] for layer in planned.layers]))
        undo.callback(install_containers(model, planned.settings.drop_dead))
        return undo.pop_all().close


def _draw(
    model: nn.Module,
    settings: Settings,
    cluster: ClusterPlan,
    layers: Sequence[LayerPlan],
    generator: torch.Generator | None,
) -> tuple[MetaLearner, list[LayerInit]]:
    """Meta-learner and first values of one cluster, on the layers' devices and in their dtypes."""
    originals = [layer.spec.read(model.get_submodule(layer.name)) for layer in layers]
    for layer, w in zip(layers, originals, strict=True):
        if not w.isfinite().all():
            raise PlanError(
                f"{layer.label} has coefficients that are not finite; load or draw others first, "
                "or leave the layer out with exclude="
            )
    # Drawn on the CPU and in one precision, so that a seed means the same everywhere.
    work = torch.float64 if originals[0].dtype == torch.float64 else torch.float32
    with torch.device("cpu"):
        meta = MetaLearner(
            settings.dim_z, settings.hidden, cluster.dim_w, settings.activation, settings.bias
        ).to(work)
    values = initialise.draw(
        settings.init,
        meta,
        [w.to("cpu", work) for w in originals],
        layers[0].spec.widths,
        [layer.spec.fan_in for layer in layers],
        generator,
    )
    meta.to(originals[0])
    return meta, [
        LayerInit(v.prompts.to(w), v.scale.to(w), v.offset.to(w))
        for v, w in zip(values, originals, strict=True)
    ]


@torch.inference_mode(False)
def materialize(model: nn.Module) -> nn.Module:
    """Turn every converted layer of ``model`` back into the library's own, in place.

    The exact inverse of :func:`convert`: plain third-party Parameters that hold the generated
    coefficients (scalers that were folded in are 1), original classes, the library's own
    ``state_dict``. A layer whose meta-learner is also used outside ``model`` may be materialized:
    the others keep the meta-learner.

    >>> model = kanmeta.convert(KAN([64, 32, 10]))
    >>> isinstance(kanmeta.materialize(model).layers[0].spline_weight, torch.nn.Parameter)
    True

    Returns:
        ``model`` itself. Create optimisers anew: the Parameters are others.

    Raises:
        NothingToConvertError: no layer is converted.
    """
    if not uninstall(model):
        converted_layers(model)  # raises: there is nothing to undo
    return model
