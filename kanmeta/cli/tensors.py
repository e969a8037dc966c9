"""A model's layers from a file of tensors alone: names and shapes tell which library made them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from kanmeta import registry
from kanmeta.adapter import Adapter
from kanmeta.cli.targets import CommandError
from kanmeta.errors import KanMetaError
from kanmeta.recognition import describe

__all__ = ["Skeleton", "ambiguities", "skeleton"]


class Skeleton(NamedTuple):
    """Modules without code that hold the tensors of a file.

    Attributes:
        model: the root.
        adapters: to convert its layers with, for their sizes.
        candidates: name of each layer -> adapters whose tensors it has; the first is used.
    """

    model: nn.Module
    adapters: tuple[Adapter, ...]
    candidates: dict[str, tuple[str, ...]]


def skeleton(tensors: Mapping[str, Tensor]) -> Skeleton:
    """Build modules around ``tensors`` and tell which of them could be KAN layers.

    What only the library's code tells (attributes, methods) cannot be checked, so that a layer may
    have several candidates. Floating-point tensors are taken for Parameters.

    Raises:
        CommandError: two names clash, or no layer has the tensors that an adapter names.
    """
    # Layers that are never converted have tensors as common as one weight.
    known = [a for a in registry.all_adapters() if not isinstance(a.broken, str)]
    adapters = [_by_tensors(adapter) for adapter in known]
    plain = _tree(tensors, {})
    found: dict[str, tuple[str, ...]] = {}
    for name, module in plain.named_modules():
        fits = tuple(a.name for a in adapters if _fits(a, module))
        if fits:
            found[name] = fits
    if not found:
        some = ", ".join([*tensors][:6])
        raise CommandError(
            f"no layer that kanmeta knows among {len(tensors)} tensors ({some}, ...). Inspect the "
            "model itself, module:function, for the reasons layer by layer"
        )
    first = {fits[0] for fits in found.values()}
    used = tuple(a for a in adapters if a.name in first)
    classes = {a.name: type(a.class_names[0], (nn.Module,), {}) for a in used}
    model = _tree(tensors, {name: classes[fits[0]] for name, fits in found.items()})
    return Skeleton(model, used, found)


def _by_tensors(adapter: Adapter) -> Adapter:
    """Take away what only code can tell."""
    return replace(
        adapter,
        sizes=lambda layer: {},
        check=lambda layer, sizes: None,
        methods=(),
        settings=(),
        broken=None,
        rows="never",
        basis=None,
    )


def _fits(adapter: Adapter, module: nn.Module) -> bool:
    if not any(True for _ in module.parameters()):
        return False
    try:
        return bool(describe(adapter, module, "tap").slots)
    except KanMetaError:
        return False


def _tree(tensors: Mapping[str, Tensor], classes: Mapping[str, type[nn.Module]]) -> nn.Module:
    root = classes.get("", nn.Module)()
    for name, tensor in tensors.items():
        module = root
        *path, leaf = name.split(".")
        for depth, part in enumerate(path):
            child = module._modules.get(part)
            if child is None:
                child = classes.get(".".join(path[: depth + 1]), nn.Module)()
                _add(module, part, child, name)
            module = child
        _add(module, leaf, tensor, name)
    return root


def _add(module: nn.Module, part: str, value: nn.Module | Tensor, name: str) -> None:
    try:
        if isinstance(value, nn.Module):
            module.add_module(part, value)
        elif value.is_floating_point():
            module.register_parameter(part, nn.Parameter(value))
        else:
            module.register_buffer(part, value)
    except (KeyError, AttributeError) as error:
        raise CommandError(f"{name!r} cannot be a tensor of a torch.nn.Module: {error}") from error


def ambiguities(candidates: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """One line a kind of layer that several adapters know."""
    for fits in dict.fromkeys(fits for fits in candidates.values() if len(fits) > 1):
        layers = [name or "(root)" for name, other in candidates.items() if other == fits]
        yield (
            f"the tensors of {', '.join(layers)} are those of {' and of '.join(fits)}; the "
            "model's code tells which"
        )
