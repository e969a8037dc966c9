"""The order in which a model executes its layers.

Three sources, the first that works: symbolic tracing with torch.fx (layers are leaves, nothing is
computed), hooks while the model runs on example inputs, the order of registration. The user's
model is never the one that runs: forward may store things in ``self`` (pykan does), so it runs on
a shadow of the module tree that shares its Parameters and objects that are no modules.
"""

import contextlib
import inspect
import logging
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from types import MethodType

import torch
from torch import Tensor, fx, nn

__all__ = ["execution_order"]

_log = logging.getLogger(__name__)


def execution_order(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    example_inputs: Sequence[object] | None = None,
) -> tuple[list[str], str]:
    """Names of ``layers`` in the order of their first use, and which source told it.

    Layers that the forward pass does not reach come last, in the order of registration.

    Args:
        model: the root; left exactly as it is.
        layers: name -> layer, in the order of registration.
        example_inputs: positional arguments for a run of the model, needed only where tracing
            fails (control flow that depends on data).

    Returns:
        (names, source), source being "traced", "ran on example inputs" or "registration order".
    """
    if "" in layers:
        return list(layers), "registration order"
    with _random_state_kept():  # a forward pass may draw numbers (dropout)
        try:
            used, source = _trace(model, layers), "traced"
        except Exception as error:  # a user's forward may raise anything when fed with proxies
            _log.debug("tracing failed: %s", error)
            if example_inputs is None:
                return list(layers), "registration order"
            used, source = _run(model, layers, example_inputs), "ran on example inputs"
    first = list(dict.fromkeys(name for name in used if name in layers))
    return first + [name for name in layers if name not in first], source


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    numpy, python_state = sys.modules.get("numpy"), random.getstate()
    numpy_state = None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def _trace(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    shadow, copies = _shadow(model)
    leaves = {id(copies[id(layer)]) for layer in layers.values()}
    canonical = {id(copies[id(layer)]): name for name, layer in layers.items()}

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
            return id(module) in leaves or super().is_leaf_module(module, module_qualified_name)

    # Optional arguments keep their defaults: `if update_grid:` on a proxy cannot be traced.
    parameters = inspect.signature(shadow.forward).parameters
    defaults = {
        name: p.default
        for name, p in parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    graph = Tracer().trace(shadow, concrete_args=defaults)
    calls = [shadow.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"]
    return [canonical[id(module)] for module in calls if id(module) in canonical]


def _run(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Sequence[object]
) -> list[str]:
    shadow, copies = _shadow(model)
    used: list[str] = []
    for name, layer in layers.items():
        copies[id(layer)].register_forward_pre_hook(
            lambda module, args, name=name: used.append(name)
        )
    shadow.eval()
    with torch.no_grad():
        shadow(*example_inputs)
    return used


def _shadow(model: nn.Module) -> tuple[nn.Module, dict[int, nn.Module]]:
    """Copy the module tree, sharing Parameters only; also return id of original -> copy."""
    copies: dict[int, nn.Module] = {id(m): object.__new__(type(m)) for m in model.modules()}
    for module in model.modules():
        copy = copies[id(module)]
        copy.__dict__ = {
            # Hooks are the user's: they are not told of a run that is only ours.
            key: OrderedDict() if key.endswith("_hooks") else _detached(value, copies)
            for key, value in module.__dict__.items()
        }
    for copy in copies.values():
        copy.__dict__["_modules"] = {
            name: child if child is None else copies[id(child)]
            for name, child in copy._modules.items()
        }
    return copies[id(model)], copies


def _detached(value: object, copies: Mapping[int, nn.Module]) -> object:
    """Copy what forward may change in place: containers, buffers and other plain tensors.

    Methods of a module that are stored in it (``child.forward = child.other``) become the copy's.
    """
    if isinstance(value, dict):
        result = value.copy()  # keeps the order and the kind
        result.update({key: _detached(item, copies) for key, item in value.items()})
        return result
    if type(value) is list:
        return [_detached(item, copies) for item in value]
    if isinstance(value, list | set):
        return value.copy()
    if isinstance(value, MethodType) and id(value.__self__) in copies:
        return MethodType(value.__func__, copies[id(value.__self__)])
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    return value
