"""What a layer does with its coefficients on real inputs, found by asking the layer.

No basis is implemented again: the library's own forward runs with coefficients of our choosing.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kanmeta.errors import PlanError
from kanmeta.spec import LayerSpec

__all__ = ["Call", "first_tensor", "gram", "standard_call", "usable", "watching"]

_log = logging.getLogger(__name__)

_ROWS = 256  # of standard normal inputs


class Call(NamedTuple):
    """One call of a layer: its arguments and the tensor it returned, all detached."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def first_tensor(value: Any) -> Tensor:
    """Return the output itself, or the first tensor in what a forward returns.

    Raises:
        PlanError: there is none.
    """
    found = _first(value)
    if found is None:
        raise PlanError(
            f"a forward gives a {type(value).__name__} without a tensor: expected a tensor, or a "
            "tuple, list or dict with one. Distil a module that gives that"
        )
    return found


def _first(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, Mapping | tuple | list):
        return None
    items = value.values() if isinstance(value, Mapping) else value
    return next((t for t in map(_first, items) if t is not None), None)


@contextmanager
def watching(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Call]]]:
    """Collect the calls of the named layers while ``model`` runs; clear the lists yourself."""
    calls: dict[str, list[Call]] = {name: [] for name in names}

    def hook(name: str) -> Any:
        def keep(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name].append(
                Call(_detached(args), _detached(kwargs), first_tensor(output).detach())
            )

        return keep

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


@torch.no_grad()
def standard_call(
    layer: nn.Module, spec: LayerSpec, generator: torch.Generator | None
) -> Call | None:
    """Call the layer with standard normal inputs: what most networks are made to expect.

    ``(256, i)`` for a linear layer; images of twice the kernel's size for a convolution.

    Returns:
        None where the layer does not take them.
    """
    channels = spec.sizes["i"] * spec.sizes.get("g", 1)
    images = [2 * size for size in spec.kernel]
    x = torch.randn(_ROWS, channels, *images, generator=generator, device="cpu")
    x = x.to(next(iter(layer.parameters())))
    try:
        return Call((x,), {}, first_tensor(layer(x)))
    except Exception as error:  # a forward of anybody's
        _log.info("%s takes no standard normal inputs: %s", spec.class_name, error)
        return None


@torch.no_grad()
def gram(
    layer: nn.Module, spec: LayerSpec, calls: Sequence[Call], generator: torch.Generator | None
) -> Tensor | None:
    """Gram matrix of the basis of an edge over the inputs of ``calls``, ``(dim_w, dim_w)``.

    Every edge gets its k-th coefficient set to a random sign, the same one for each k. The products
    of two such outputs have the mean sum_e <b_k b_k'>, as signs of different edges cancel.

    Returns:
        None where the output is no linear function of the coefficients, a norm after the sum for
        instance, or a wavelet whose scale is one of them.
    """
    shape = spec.edge_shape
    like = next(iter(layer.parameters()))
    signs = torch.randint(0, 2, (*shape, 1), generator=generator, device="cpu").to(like) * 2 - 1
    total = torch.zeros(spec.dim_w, spec.dim_w, dtype=torch.float64, device=like.device)
    for call in calls:

        def output(w: Tensor, call: Call = call) -> Tensor:
            y = functional_call(layer, dict(spec.split(w)), call.args, call.kwargs)
            return first_tensor(y).double().flatten()

        zero = output(like.new_zeros(*shape, spec.dim_w))
        if not bool(zero.isfinite().all()):
            return None  # a wavelet divides by its scale
        test = torch.randn(*shape, spec.dim_w, generator=generator, device="cpu").to(like) * 0.1
        once, twice = output(test) - zero, output(2 * test) - zero
        if not torch.allclose(twice, 2 * once, rtol=1e-3, atol=1e-3 * float(once.abs().max())):
            return None
        unit = torch.eye(spec.dim_w).to(like)
        responses = torch.stack([output((signs * e).contiguous()) - zero for e in unit])
        total += responses @ responses.T / responses.shape[1]
    return usable(total)


def usable(matrix: Tensor) -> Tensor | None:
    """The matrix, or None if it is no metric: not finite, or zero."""
    return matrix if bool(matrix.isfinite().all()) and float(matrix.trace()) > 0 else None


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return (
            type(value)(_detached(item) for item in value)
            if type(value) in (tuple, list)
            else value
        )
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    return value
