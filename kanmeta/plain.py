"""Turning a converted layer into the library's own and back, without losing its prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from kanmeta.binding import Binding
from kanmeta.spec import CONSTANTS, LayerSpec

__all__ = ["make_plain", "owners", "plain_layers"]


def owners(layer: nn.Module, spec: LayerSpec) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """Modules that hold generated tensors: path of the module -> (module, attribute -> path)."""
    found: dict[str, tuple[nn.Module, dict[str, str]]] = {"": (layer, {})}
    for path in spec.paths:
        prefix, _, attribute = path.rpartition(".")
        found.setdefault(prefix, (layer.get_submodule(prefix), {}))[1][attribute] = path
    return found


def make_plain(binding: Binding, tensors: Mapping[str, Tensor]) -> Callable[[], None]:
    """Give the layer its library's classes and plain Parameters that hold ``tensors``.

    Its meta-learner, if it owns one, is out of the module tree afterwards.

    Returns:
        A function that makes the layer a converted one again, with the same prompts. What became
        of its other tensors in the meantime stays.
    """
    layer, spec = binding.layer, binding.spec
    places = owners(layer, spec)
    prompts = layer._parameters.pop("prompts")
    constants = {name: layer._buffers.pop(name) for name in CONSTANTS}
    meta = layer._modules.pop("meta_learner", None)
    classes = {prefix: type(module) for prefix, (module, _) in places.items()}
    for prefix, (module, generated) in places.items():
        module.__class__ = classes[prefix]._original  # type: ignore[attr-defined]
        del module.__dict__["_kanmeta"]
        for attribute, path in generated.items():
            parameter = nn.Parameter(tensors[path], requires_grad=spec.trainable[path])
            module.register_parameter(attribute, parameter)
        for name in binding.order[prefix]:  # optimisers and state_dict go by position
            if name in module._parameters:
                module._parameters[name] = module._parameters.pop(name)

    def undo() -> None:
        for prefix, (module, generated) in places.items():
            for attribute in generated:
                module._parameters.pop(attribute, None)
            module.__dict__["_kanmeta"] = binding
            module.__class__ = classes[prefix]
        layer._parameters["prompts"] = prompts
        layer._buffers.update(constants)
        if meta is not None:
            layer._modules["meta_learner"] = meta

    return undo


@contextmanager
def plain_layers(bindings: Sequence[Binding]) -> Iterator[None]:
    """Make layers plain ones of their library for the time of the context."""
    with torch.no_grad():
        tensors = [binding.spec.split(binding.coefficients()) for binding in bindings]
    with ExitStack() as undo:
        for binding, values in zip(bindings, tensors, strict=True):
            # Tensors cut from one storage would be written to disk with all of it.
            undo.callback(make_plain(binding, {p: t.clone() for p, t in values.items()}))
        yield
