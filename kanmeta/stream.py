"""Running a library's own forward in blocks of rows, and again in backward.

Of a layer only its input stays alive between forward and backward: the basis, the library's
intermediate results and the generated coefficients exist for one block (coefficients: one layer)
at a time. Right for every layer that treats rows independently; nothing of its basis is known.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import blocks
from kanmeta.blocks import Cut, Tensors
from kanmeta.errors import ExecutionError
from kanmeta.shadow import Shadow
from kanmeta.spec import LayerSpec

__all__ = [
    "Matrices",
    "Sources",
    "again",
    "cut_rows",
    "leaves_of",
    "matrices_of",
    "pull_generated",
    "run",
]

Sources = tuple[Tensor | None, ...]
"""Prompts and small matrices that coefficients are generated from."""

Matrices = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
"""W1, b1, W2, b2."""

_BLOCK = 1 << 20  # bytes

Generate = Callable[[Sources], dict[str, Tensor]]
"""Generated tensors by path."""


def matrices_of(sources: Sources) -> Matrices:
    """W1, b1, W2, b2."""
    _, weight1, bias1, weight2, bias2 = sources[:5]
    assert weight1 is not None
    assert weight2 is not None
    return weight1, bias1, weight2, bias2


def pull_generated(
    w: Tensor, gradient: Tensor, sources: Sources, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the ``wanted`` sources, with a graph, from that of ``w`` generated of them."""
    targets = [s for s, g in zip(sources, wanted, strict=True) if g and s is not None]
    found = iter(torch.autograd.grad(w, targets, gradient, create_graph=True))
    return [next(found) if g else None for g in wanted]


def leaves_of(sources: Sources, learned: Sequence[bool]) -> Sources:
    """The same tensors as leaves of a graph of their own; ``learned`` of them want a gradient."""
    return tuple(
        None if s is None else s.detach().requires_grad_(g)
        for s, g in zip(sources, learned, strict=True)
    )


def cut_rows(spec: LayerSpec, x: Tensor, budget: int) -> Cut | None:
    """How to cut the input of a layer in blocks of rows that take about ``budget`` bytes.

    Returns:
        None if ``x`` has not the dimensions that it is known for which of them are rows.
    """
    kernel = spec.kernel
    if (x.dim() != 2 + len(kernel)) if kernel else x.dim() < 2:
        return None
    leading = x.dim() - 1 if spec.leading else 1
    axis = max(range(leading), key=lambda a: x.shape[a])
    rows = max(x.shape[axis], 1)
    return Cut(axis, max(1, min(rows, budget // max(1, row_bytes(spec, x) // rows))))


def row_bytes(spec: LayerSpec, x: Tensor) -> int:
    """Roughly what a library's forward keeps for backward."""
    # A dozen copies of the basis are usual: B-splines by recursion, powers, scaled and cut.
    an_input = 10 * max(spec.widths)
    if spec.expands:
        an_input = max(an_input, 5 * spec.outputs)
    return x.numel() * x.element_size() * an_input


def run(
    layer: nn.Module,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cut: Cut,
    sources: Sources,
    generate: Generate,
) -> Any:
    """Run ``forward(layer, *args, **kwargs)`` in blocks of rows of ``args[0]``.

    Args:
        layer: a converted layer.
        forward: of the library, as a function.
        args, kwargs: of the call.
        cut: of ``args[0]`` in blocks.
        sources: what ``generate`` makes the coefficients from.
        generate: differentiable.
    """
    x = args[0]
    shadow = Shadow(layer)
    generated = generate(sources)
    call = _Call(shadow, forward, args[1:], kwargs, tuple(generated), len(sources), generate)
    replay = _Replay(x.device)
    cut.context = replay.context
    plain = shadow.tensors
    outputs = _Stream.apply(call, cut, x, *sources, *plain, *generated.values())
    replay.keep_if_drawn()
    return outputs[0] if call.single else outputs


def again(layer: nn.Module, function: Callable[[nn.Module, Tensor], Tensor], y: Tensor) -> Tensor:
    """``function(layer, y)``, which treats rows alone, and a second time in backward: keeps ``y``.

    In blocks of rows, no larger than what nothing is faster with.
    """

    def nothing(sources: Sources) -> dict[str, Tensor]:
        return {}

    step = max(1, _BLOCK * len(y) // max(1, y.nbytes))
    found = run(layer, function, (y,), {}, Cut(0, step), (), nothing)
    assert isinstance(found, Tensor)
    return found


class _Call:
    """One call of a layer's forward, as a block function of its input."""

    def __init__(
        self,
        shadow: Shadow,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        paths: tuple[str, ...],
        sources: int,
        generate: Generate,
    ) -> None:
        self.shadow, self.forward, self.args, self.kwargs = shadow, forward, args, kwargs
        self.paths, self.sources, self.generate = paths, sources, generate
        self.single = True

    def __call__(self, rows: Tensors, shared: Tensors) -> tuple[Tensors, Tensors]:
        plain = len(self.shadow.tensors)
        generated = dict(zip(self.paths, shared[plain:], strict=True))
        layer = self.shadow.layer(shared[:plain], generated)
        y = self.forward(layer, rows[0], *self.args, **self.kwargs)
        self.single = isinstance(y, Tensor)
        outputs = (y,) if isinstance(y, Tensor) else y
        if not isinstance(outputs, tuple) or not all(isinstance(t, Tensor) for t in outputs):
            raise ExecutionError(
                f"the forward of {type(layer).__name__} returned a {type(y).__name__}; blocks of "
                "rows can be joined for a tensor or a tuple of tensors. Use "
                "kanmeta.set_execution(model, 'regenerate') for this layer"
            )
        return outputs, ()


class _Stream(torch.autograd.Function):
    """Inputs: x, sources, plain tensors, generated ones. The last are not kept but made again."""

    @staticmethod
    def forward(ctx: Any, call: _Call, cut: Cut, *tensors: Tensor | None) -> Tensors:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.cut = call, cut
        kept = 1 + call.sources + len(call.shadow.tensors)
        ctx.save_for_backward(*tensors[:kept])
        rows, shared = blocks.present(tensors[:1]), blocks.present(tensors[1 + call.sources :])
        return blocks.run(call, cut, rows, shared)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call, wanted = ctx.call, ctx.needs_input_grad[2:]
        x, *rest = ctx.saved_tensors
        sources, plain = tuple(rest[: call.sources]), tuple(rest[call.sources :])
        # The coefficients' gradients reach prompts and meta-learner the way they were generated
        # in the forward; in a second derivative they depend on these anew.
        generated = call.generate(sources)
        found = blocks.pull_back(
            call,
            ctx.cut,
            ((x,), (*plain, *generated.values())),
            (gradients, ()),
            (wanted[:1], wanted[1 + call.sources :]),
        )
        return (None, None, found[0], *[None] * call.sources, *found[1:])


class _Replay:
    """Autocast and random numbers as they were in the forward, for running it again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        kind = device.type
        self.autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        self.before = self._states()
        self.drawn = False

    def _states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type != "cpu":
            states.append(torch.get_device_module(self.device).get_rng_state(self.device))
        return states

    def keep_if_drawn(self) -> None:
        """After the forward: remember the random numbers if it drew any."""
        pairs = zip(self.before, self._states(), strict=True)
        self.drawn = not all(torch.equal(old, new) for old, new in pairs)
        self.before = self.before if self.drawn else []

    @contextmanager
    def context(self) -> Iterator[None]:
        enabled, dtype = self.autocast
        with ExitStack() as stack:
            # Casts are not cached: a copy made without a graph would be used where one is needed.
            stack.enter_context(
                torch.autocast(self.device.type, dtype=dtype, enabled=enabled, cache_enabled=False)
            )
            if self.drawn:
                kind = "cuda" if self.device.type == "cpu" else self.device.type
                devices = [] if self.device.type == "cpu" else [self.device]
                stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
                torch.set_rng_state(self.before[0])
                if devices:
                    module = torch.get_device_module(self.device)
                    module.set_rng_state(self.before[1], self.device)
            yield
