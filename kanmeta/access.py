"""Named access to what a conversion put into a model, and its parameters grouped for optimisers."""

from typing import Any

from torch import Tensor, nn

from kanmeta.binding import Binding
from kanmeta.errors import NothingToConvertError, PlanError, SharingError
from kanmeta.meta import MetaLearner
from kanmeta.surgery import bindings

__all__ = [
    "coefficients",
    "complete_layers",
    "converted_layers",
    "meta_learners",
    "param_groups",
    "prompts",
]


def converted_layers(model: nn.Module) -> dict[str, Binding]:
    """Converted layers by name.

    Raises:
        NothingToConvertError: there is none.
    """
    if not isinstance(model, nn.Module):
        raise PlanError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    layers = dict(bindings(model))
    if not layers:
        raise NothingToConvertError(
            f"no converted layer in this {type(model).__name__}; call kanmeta.convert(model) first"
        )
    return layers


def complete_layers(model: nn.Module) -> dict[str, Binding]:
    """Converted layers by name, of a model that holds all their meta-learners.

    Raises:
        NothingToConvertError: there is none.
        SharingError: a meta-learner in use is not registered below ``model``, so that it would be
            neither trained nor saved.
    """
    layers = converted_layers(model)
    registered = set(model.modules())
    for name, binding in layers.items():
        if binding.meta_learner not in registered:
            users = [b.name for b in binding.meta_learner.bindings if isinstance(b, Binding)]
            raise SharingError(
                f"the meta-learner of {name or '(root)'} is not part of this model: the layer "
                f"that holds it was replaced, removed or lies outside (it was shared by {users}). "
                "Pass the module that was converted; to take layers out of it, call "
                "kanmeta.materialize on them first, which hands the meta-learner on."
            )
    return layers


def prompts(model: nn.Module) -> dict[str, Tensor]:
    """Prompts z of every converted layer by name, ``(*edge_shape, dim_z)``, e.g. (out, in, 1).

    >>> model = kanmeta.convert(KAN([64, 32, 10]))
    >>> {name: tuple(z.shape) for name, z in kanmeta.prompts(model).items()}
    {'layers.0': (32, 64, 1), 'layers.1': (10, 32, 1)}

    Raises:
        NothingToConvertError: no layer is converted.
    """
    return {name: binding.prompts for name, binding in converted_layers(model).items()}


def meta_learners(model: nn.Module) -> dict[str, MetaLearner]:
    """Meta-learners by the name of the layer that owns each: its first one.

    >>> model = kanmeta.convert(KAN([64, 32, 10]), clusters="layer", hidden=16)
    >>> {name: meta.hidden for name, meta in kanmeta.meta_learners(model).items()}
    {'layers.0': 16, 'layers.1': 16}

    Raises:
        NothingToConvertError: no layer is converted.
        SharingError: a meta-learner in use is not part of ``model``.
    """
    found: dict[str, MetaLearner] = {}
    owned = {m: n for n, m in model.named_modules() if isinstance(m, MetaLearner)}
    for binding in complete_layers(model).values():
        meta = binding.meta_learner
        found[owned[meta].rpartition(".")[0]] = meta
    return found


def coefficients(model: nn.Module) -> dict[str, Tensor]:
    """Generated coefficients w of every converted layer by name, ``(*edge_shape, dim_w)``.

    >>> model = kanmeta.convert(KAN([64, 32, 10]))
    >>> kanmeta.coefficients(model)["layers.1"].shape
    torch.Size([10, 32, 9])

    Gradients flow to prompts and meta-learners unless grad mode is off, so penalties on
    coefficients can be written with it.

    Raises:
        NothingToConvertError: no layer is converted.
        ExecutionError: the model is sharded, and a layer's prompts are not gathered now.
    """
    return {name: binding.coefficients() for name, binding in converted_layers(model).items()}


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    prompt_lr: float | None = None,
    meta_lr: float | None = None,
    weight_decay: float = 0.0,
    prompt_weight_decay: float | None = None,
    meta_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimiser: prompts, meta-learners, and everything else.

    >>> model = kanmeta.convert(KAN([64, 32, 10]))
    >>> groups = kanmeta.param_groups(model, lr=1e-3, prompt_lr=1e-2)
    >>> [(group["name"], group["lr"]) for group in groups]
    [('prompts', 0.01), ('meta_learners', 0.001)]
    >>> optimiser = torch.optim.AdamW(groups)

    The paper trains with one AdamW for each; one optimiser with three groups does the same.

    Args:
        model: a converted model.
        lr: learning rate of everything else, and of the others where not given.
        prompt_lr: of the prompts.
        meta_lr: of the meta-learners.
        weight_decay: of everything else, and of the others where not given.
        prompt_weight_decay: of the prompts.
        meta_weight_decay: of the meta-learners.

    Returns:
        Groups named ``"prompts"``, ``"meta_learners"`` and ``"other"`` under the key ``"name"``;
        each Parameter that requires a gradient is in exactly one; empty groups are left out.

    Raises:
        NothingToConvertError: no layer is converted.
        SharingError: a meta-learner in use is not part of ``model``.
    """
    layers = complete_layers(model).values()
    z = {binding.prompts for binding in layers}
    m = {p for binding in layers for p in binding.meta_learner.parameters()}
    groups: dict[str, list[Tensor]] = {"prompts": [], "meta_learners": [], "other": []}
    for p in model.parameters():
        if p.requires_grad:
            groups["prompts" if p in z else "meta_learners" if p in m else "other"].append(p)
    rates = {"prompts": prompt_lr, "meta_learners": meta_lr, "other": None}
    decays = {"prompts": prompt_weight_decay, "meta_learners": meta_weight_decay, "other": None}
    return [
        {
            "name": name,
            "params": params,
            "lr": lr if rates[name] is None else rates[name],
            "weight_decay": weight_decay if decays[name] is None else decays[name],
        }
        for name, params in groups.items()
        if params
    ]
