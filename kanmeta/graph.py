"""The order in which a model executes its layers.

Three sources, the first that works: symbolic tracing with torch.fx (layers are leaves, nothing is
computed), hooks while the model runs on example inputs, the order of registration. The user's
model is never the one that runs: forward may store things in ``self`` (pykan does), so it runs on
a shadow of the module tree that shares its Parameters and objects that are no modules.
"""

import contextlib
import functools
import inspect
import logging
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn

from kanmeta.errors import PlanError

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

    used: list[str] = []

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
            return id(module) in leaves or super().is_leaf_module(module, module_qualified_name)

        def call_module(
            self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
        ) -> Any:
            used.extend(name for name in [canonical.get(id(m))] if name is not None)
            return super().call_module(m, forward, args, kwargs)

    # Optional arguments keep their defaults: `if update_grid:` on a proxy cannot be traced.
    parameters = inspect.signature(shadow.forward).parameters
    defaults = {
        name: p.default
        for name, p in parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    _record_forward(copies, layers, used)
    Tracer().trace(shadow, concrete_args=defaults)
    return used


def _run(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Sequence[object]
) -> list[str]:
    shadow, copies = _shadow(model)
    used: list[str] = []
    _record_forward(copies, layers, used)
    shadow.eval()
    try:
        with torch.no_grad():
            shadow(*example_inputs)
    except Exception as error:
        raise PlanError(
            f"the model cannot run on example_inputs: {error!r}. Expected a sequence of the "
            "positional arguments of its forward; leave it out to take the order of registration"
        ) from error
    return used


def _record_forward(
    copies: Mapping[int, nn.Module], layers: Mapping[str, nn.Module], used: list[str]
) -> None:
    """Let the copies of ``layers`` note their names when they run, also by ``layer.forward(x)``."""

    def recorder(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            used.append(name)
            return forward(*args, **kwargs)

        return record

    for name, layer in layers.items():
        copy = copies[id(layer)]
        copy.__dict__["forward"] = recorder(name, copy.forward)


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
    if isinstance(value, FunctionType) and value.__closure__:
        return _rebound(value, copies)
    if isinstance(value, functools.partial):
        function: Any = _detached(value.func, copies)
        keywords = {key: _copy_of(item, copies) for key, item in value.keywords.items()}
        return functools.partial(function, *(_copy_of(a, copies) for a in value.args), **keywords)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    return value


def _copy_of(value: object, copies: Mapping[int, nn.Module]) -> object:
    return copies.get(id(value), value)


def _rebound(function: FunctionType, copies: Mapping[int, nn.Module]) -> FunctionType:
    """Copy a function that closes over modules (``lambda x: m.fc(x)``) to run their copies."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(CellType(_copy_of(cell.cell_contents, copies)))
        except ValueError:  # a cell that is empty so far
            cells.append(cell)
    bound = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells),
    )
    bound.__kwdefaults__ = function.__kwdefaults__
    bound.__dict__.update(function.__dict__)
    return bound
