"""How generated coefficients reach the library's own forward, in the mode that is asked for.

``"materialize"``: generate all coefficients of a layer, run the library's forward on them and let
autograd keep what it keeps. ``"regenerate"``: as before, but without the meta-learner's hidden
activations (:mod:`kanmeta.generate`) and the coefficients (:mod:`kanmeta.unkept`). ``"stream"``:
run the library's forward in blocks of rows and keep only its input (:mod:`kanmeta.stream`).
``"auto"``: see :mod:`kanmeta.policy`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import conv_fast, fast, policy, stream
from kanmeta.binding import Binding, this_thread, traced
from kanmeta.blocks import Cut
from kanmeta.errors import CoefficientWriteError
from kanmeta.guard import refusal
from kanmeta.independence import rows_are_independent, without_dropout
from kanmeta.shadow import Shadow, rows_are_mixed
from kanmeta.unkept import unkept

__all__ = ["run"]


def run(
    binding: Binding, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the library's ``forward`` with generated coefficients in place of its Parameters."""
    mode, cut = _mode(binding, args)
    if mode == "stream":
        sources, unbound = binding.sources(), forward.__func__  # type: ignore[attr-defined]
        alone = cut is not None or bool(binding.spec.kernel)
        described = alone and not kwargs and _is_described(binding, args)
        if described and _knows_basis(binding, forward, args[0]):
            y = _by_basis(binding, binding.layer, args[0], sources)
            if y is not None:  # else dropout is on where the basis has no place for it
                return y
        slower = policy.otherwise(binding.execution, False, binding.budget)
        if slower == "materialize":  # nobody asked for less memory
            return _whole(binding, forward, args, kwargs, keep=True)
        if cut is not None and _treats_rows_alone(binding, unbound, args, kwargs, cut.axis):
            return stream.run(binding.layer, unbound, args, kwargs, cut, sources, binding.tensors)
    return _whole(binding, forward, args, kwargs, keep=mode == "materialize")


def _mode(binding: Binding, args: tuple[Any, ...]) -> tuple[str, Cut | None]:
    """Mode of this call, and how its input is cut if it is streamed."""
    spec, x = binding.spec, args[0] if args else None
    execution, budget = binding.execution, binding.budget
    if execution == "materialize" or traced():
        return "materialize", None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.device.type == "meta":
        return policy.otherwise(execution, False, budget), None
    kept = binding.generated_bytes + stream.row_bytes(spec, x)
    if policy.is_left_to_autograd(execution, kept, budget):
        return "materialize", None
    cut = None
    if execution != "regenerate" and rows_are_mixed(binding.layer, spec) is None:
        cut = stream.cut_rows(spec, x, binding.scratch)
    # Norms that mix the rows of a convolution stay outside its tiles.
    streams = cut is not None or (bool(spec.kernel) and _is_described(binding, args))
    return policy.otherwise(execution, streams, budget), cut


def _by_basis(
    binding: Binding, layer: nn.Module, x: Tensor, sources: stream.Sources
) -> Tensor | None:
    """Run ``layer`` by the basis that its adapter declares; None if it does not know it."""
    activation, generate, call = (
        binding.meta_learner.activation,
        binding.from_sources,
        (layer, binding.spec, x, sources),
    )
    if binding.spec.kernel:
        return conv_fast.compute(
            *call, activation=activation, generate=generate, budget=binding.budget
        )
    return fast.compute(
        *call, activation=activation, generate=generate, scratch=binding.scratch_for(x)
    )


def _is_described(binding: Binding, args: tuple[Any, ...]) -> bool:
    """Whether the call is one that the basis that its adapter declares describes."""
    mapped = binding.map is not None
    if binding.spec.kernel:
        return conv_fast.fits(binding.layer, binding.spec, mapped, args)
    return fast.fits(binding.spec, mapped, args)


def _knows_basis(binding: Binding, forward: Callable[..., Any], x: Tensor) -> bool:
    """Whether that gives what the library's ``forward`` does; compared once a state."""
    function = forward.__func__  # type: ignore[attr-defined]
    state = (id(function), *fast.state(binding.layer))
    if binding.compared[0] != state:
        if torch.is_inference_mode_enabled():
            return False  # there are no gradients to compare
        agrees = _convolution_agrees if binding.spec.kernel else _linear_agrees
        same = agrees(binding, function, x)
        # Comparing says nothing of what has diverged, which is unequal to itself: ask again.
        finite = bool(torch.isfinite(binding.prompts.detach()).all())
        binding.compared = (state if finite else (), same)
    return binding.compared[1]


def _convolution_agrees(binding: Binding, function: Callable[..., Any], x: Tensor) -> bool:
    with torch.no_grad():
        sources = binding.sources()
        generated = binding.tensors(sources)

    def ours(layer: nn.Module, x: Tensor) -> Tensor | None:
        return _by_basis(binding, layer, x, sources)

    return conv_fast.agrees(binding.layer, binding.spec, function, generated, ours, x)


def _linear_agrees(binding: Binding, function: Callable[..., Any], x: Tensor) -> bool:
    """Compare on a copy, so that hooks of the layer's Parameters see no gradients of this."""
    shadow = Shadow(binding.layer)
    with torch.no_grad():  # checkpointing counts what is saved
        given = binding.sources()
    trains = any(p.requires_grad for p in binding.meta_learner.parameters())
    sources = stream.leaves_of(given, [binding.prompts.requires_grad, *[trains] * 4, False])
    copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in shadow.tensors]
    learned = [t for t in (sources[0], *copies) if t is not None and t.requires_grad]
    matrices = [t for t in sources[1:] if t is not None and t.requires_grad]

    def ours(x: Tensor) -> Tensor | None:
        return _by_basis(binding, shadow.layer(copies, {}), x, sources)

    def theirs(x: Tensor) -> Any:
        return function(shadow.layer(copies, binding.tensors(sources)), x)

    shape = 8, binding.spec.sizes["i"]
    return fast.agree(shape, ours, theirs, binding.prompts, learned, matrices)


def _treats_rows_alone(
    binding: Binding,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    axis: int,
) -> bool:
    """Whether ``forward``, a function, can be run in blocks; tried once a state."""
    state = (id(forward), args[0].dim(), *fast.state(binding.layer))
    if binding.independent[0] != state:
        shadow = Shadow(binding.layer)
        with torch.no_grad():
            generated = binding.tensors(binding.sources())
        layer = without_dropout(shadow.layer(shadow.tensors, generated))

        def run(rows: Tensor) -> Any:
            return forward(layer, rows, *args[1:], **kwargs)

        binding.independent = (state, rows_are_independent(run, args[0], axis))
    return binding.independent[1]


def _whole(
    binding: Binding,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keep: bool = False,
) -> Any:
    """Run ``forward`` on all rows at once; ``keep``: see :meth:`Binding.coefficients`."""
    context: AbstractContextManager[object] = nullcontext()
    if keep:
        tensors = binding.spec.split(binding.coefficients(keep))
    else:
        sources = binding.sources()
        tensors = binding.tensors(sources)
        context = unkept(tensors, sources, binding.tensors)
    versions = _versions(tensors)
    binding.active = (this_thread(), tensors)
    try:
        with context:
            result = forward(*args, **kwargs)
    finally:
        binding.active = None
    for path, before, after in zip(tensors, versions, _versions(tensors), strict=False):
        if after > before:
            raise CoefficientWriteError(refusal("a write in forward", binding.label(path)))
    return result


def _versions(tensors: Mapping[str, Tensor]) -> list[int]:
    """How often each tensor was written to; empty where torch does not count."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return []
    try:
        return [tensor._version for tensor in tensors.values()]
    except RuntimeError:  # torch.func's wrappers
        return []
