"""How generated coefficients reach the library's own forward, in the mode that is asked for.

``"materialize"``: generate all coefficients of a layer, run the library's forward on them and let
autograd keep what it keeps. ``"regenerate"``: as before, but without the meta-learner's hidden
activations (:mod:`kanmeta.generate`) and the coefficients (:mod:`kanmeta.unkept`). ``"stream"``:
run the library's forward in blocks of rows and keep only its input (:mod:`kanmeta.stream`).
``"auto"``: see :mod:`kanmeta.policy`.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kanmeta import fast, policy, stream
from kanmeta.blocks import Cut
from kanmeta.errors import CoefficientWriteError
from kanmeta.generate import from_matrices, no_autocast
from kanmeta.guard import GeneratedTensor, refusal
from kanmeta.independence import rows_are_independent, without_dropout
from kanmeta.meta import MetaLearner
from kanmeta.shadow import Shadow, rows_are_mixed
from kanmeta.shards import refuse_shards
from kanmeta.spec import LayerSpec
from kanmeta.unkept import unkept

__all__ = ["Binding", "run"]


class Binding:
    """What a converted layer knows: its shape, its prompts' owner, its meta-learner.

    It sits in the layer's ``__dict__``, so the meta-learner is not registered a second time:
    ``state_dict`` holds it once, and ``deepcopy`` and ``pickle`` keep the sharing.

    Attributes:
        name: the layer's name when it was converted, for messages.
        layer: the converted layer; owns ``prompts``, ``coefficient_scale``, ``coefficient_offset``.
        spec: where its coefficients go.
        meta_learner: shared with the other layers of its cluster.
        execution: the mode that was asked for, a name of :data:`kanmeta.policy.EXECUTIONS`.
        budget: bytes of scratch; None: see :func:`kanmeta.policy.default_budget`.
        order: names of the Parameters of each module whose coefficients are generated, in their
            original order, for ``materialize``.
    """

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        spec: LayerSpec,
        meta_learner: MetaLearner,
        execution: str,
        order: dict[str, tuple[str, ...]],
    ) -> None:
        """See the class."""
        self.name = name
        self.layer = layer
        self.spec = spec
        self.meta_learner = meta_learner
        self.execution = execution
        self.budget: int | None = None
        self.compared: tuple[tuple[object, ...], bool] = ((), False)
        self.independent: tuple[tuple[object, ...], bool] = ((), False)
        self.order = order
        # Tensors of the forward pass in progress, and the thread it runs in: another thread must
        # not pick them up, they belong to this thread's autograd graph.
        self.active: tuple[int, dict[str, Tensor]] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back from pickle or deepcopy."""
        self.__dict__.update(state)
        self.meta_learner.bindings.append(self)

    @property
    def prompts(self) -> Tensor:
        """Prompts z, ``(*edge_shape, dim_z)``."""
        prompts = self.layer.prompts
        assert isinstance(prompts, Tensor)
        return prompts

    @property
    def map(self) -> Tensor | None:
        """Map T of grid updates, ``(*edge axes but o, k, k)``; None before the first."""
        coefficient_map = self.layer.coefficient_map
        assert coefficient_map is None or isinstance(coefficient_map, Tensor)
        return coefficient_map

    @map.setter
    def map(self, value: Tensor | None) -> None:
        self.layer._buffers["coefficient_map"] = value
        if self.active is not None:  # a grid update inside forward: what follows is to see it
            self.active = (self.active[0], self.spec.split(self.coefficients()))

    @property
    def scratch(self) -> int:
        """Bytes of scratch."""
        if self.budget is not None:
            return self.budget
        return policy.default_budget(self.spec.edges, self.spec.dim_w)

    @property
    def allowed(self) -> int:
        """Bytes that ``"auto"`` leaves to autograd: all of them unless the user set a budget."""
        return sys.maxsize if self.budget is None else self.budget

    @property
    def generated_bytes(self) -> int:
        """Bytes of the hidden activations and the coefficients, and of what is made of these."""
        numbers = 2 * self.meta_learner.hidden + 2 * self.spec.dim_w
        return self.spec.edges * numbers * self.prompts.element_size()

    def coefficients(self, keep: bool = False) -> Tensor:
        """Generate w = offset + scale * M(z), ``(*edge_shape, dim_w)``.

        After a grid update the basis coefficients are T (offset + scale * M(z)).

        Args:
            keep: let autograd keep the hidden activations.
        """
        small = self.execution == "auto" and self.generated_bytes <= self.allowed
        if not keep and not small and self.execution != "materialize" and not _traced():
            return self.from_sources(self.sources())
        self._refuse_shards()
        z, layer = self.prompts, self.layer
        with no_autocast(z.device.type):
            w = self.meta_learner(z, layer.coefficient_scale, layer.coefficient_offset)
            w = w if self.map is None else self._mapped(w, self.map)
        assert isinstance(w, Tensor)
        return w

    def sources(self) -> stream.Sources:
        """All that coefficients are generated from: z, W1, b1, W2, b2 and T."""
        self._refuse_shards()
        z, layer = self.prompts, self.layer
        with no_autocast(z.device.type):
            scale, offset = (
                layer.get_buffer("coefficient_scale"),
                layer.get_buffer("coefficient_offset"),
            )
            return (z, *self.meta_learner.folded(z, scale, offset), self.map)

    def _refuse_shards(self) -> None:
        users = (b.layer for b in self.meta_learner.bindings if isinstance(b, Binding))
        others = (layer for layer in users if layer is not self.layer)
        refuse_shards(self.name or "(root)", self.prompts, self.meta_learner, others)

    def from_sources(self, sources: stream.Sources) -> Tensor:
        """Generate coefficients without keeping the hidden activations."""
        z, weight1, bias1, weight2, bias2, coefficient_map = sources
        assert z is not None
        assert weight1 is not None
        assert weight2 is not None
        matrices = weight1, bias1, weight2, bias2
        activation, scratch = self.meta_learner.activation, self.scratch
        with no_autocast(z.device.type):
            w = from_matrices(z, *matrices, activation=activation, scratch=scratch)
            return w if coefficient_map is None else self._mapped(w, coefficient_map)

    def tensors(self, sources: stream.Sources) -> dict[str, Tensor]:
        """Generated tensors in the library's own layout, by path."""
        return self.spec.split(self.from_sources(sources))

    def _mapped(self, w: Tensor, coefficient_map: Tensor) -> Tensor:
        """Apply T, ``(*edge axes but o, k, k)``, to the basis coefficients of each edge."""
        parts = list(torch.split(w, list(self.spec.widths), dim=-1))
        position = self.spec.basis_position
        assert position is not None
        edges = "".join(chr(ord("A") + i) for i in range(len(self.spec.edge_axes)))
        inputs = edges.replace(edges[self.spec.edge_axes.index("o")], "")
        equation = f"{inputs}yx,{edges}x->{edges}y"
        parts[position] = torch.einsum(equation, coefficient_map, parts[position])
        return torch.cat(parts, dim=-1)

    def fused(self, x: Tensor, sources: stream.Sources) -> Tensor | None:
        """Run the layer by the basis that its adapter declares; None if it does not know it."""
        return fast.compute(
            self.layer,
            self.spec,
            x,
            sources,
            activation=self.meta_learner.activation,
            generate=self.from_sources,
            scratch=self.scratch,
        )

    def knows_basis(self, forward: Callable[..., Any]) -> bool:
        """Whether that gives what the library's ``forward`` does; compared once a state."""
        state = fast.state(self.layer)
        if self.compared[0] != state:
            plain = [p for n, p in self.layer.named_parameters() if "meta_learner." not in n]
            learned = [p for p in plain if p.requires_grad]

            def ours(x: Tensor) -> Tensor | None:
                return self.fused(x, self.sources())

            def theirs(x: Tensor) -> Any:
                return self.whole(forward, (x,), {})

            same = fast.agree(self.spec, ours, theirs, self.prompts, learned)
            self.compared = (state, same)
        return self.compared[1]

    def treats_rows_alone(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], axis: int
    ) -> bool:
        """Whether ``forward``, a function, can be run in blocks; tried once a state."""
        state = fast.state(self.layer)
        if self.independent[0] != state:
            shadow = Shadow(self.layer)
            with torch.no_grad():
                generated = self.tensors(self.sources())
            layer = without_dropout(shadow.layer(shadow.tensors, generated))

            def run(rows: Tensor) -> Any:
                return forward(layer, rows, *args[1:], **kwargs)

            self.independent = (state, rows_are_independent(run, args[0], axis))
        return self.independent[1]

    def whole(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        keep: bool = False,
    ) -> Any:
        """Run ``forward`` on all rows at once; ``keep``: see :meth:`coefficients`."""
        context: AbstractContextManager[object] = nullcontext()
        if keep:
            tensors = self.spec.split(self.coefficients(keep))
        else:
            sources = self.sources()
            tensors = self.tensors(sources)
            context = unkept(tensors, sources, self.tensors)
        versions = _versions(tensors)
        self.active = (_thread(), tensors)
        try:
            with context:
                result = forward(*args, **kwargs)
        finally:
            self.active = None
        for path, before, after in zip(tensors, versions, _versions(tensors), strict=False):
            if after > before:
                raise CoefficientWriteError(refusal("a write in forward", self.label(path)))
        return result

    def read(self, path: str) -> Tensor:
        """Return the tensor at ``path`` in the library's own layout."""
        if self.active is not None and self.active[0] == _thread():
            return self.active[1][path]
        tensor = self.spec.split(self.coefficients())[path]
        return GeneratedTensor.wrap(tensor, self.label(path))

    def is_reading(self, path: str, value: object) -> bool:
        """Whether ``value`` is the tensor that the forward pass in progress reads at ``path``."""
        active = self.active
        return active is not None and active[0] == _thread() and value is active[1][path]

    def label(self, path: str) -> str:
        """Name of the tensor at ``path``, for messages."""
        return f"{self.name}.{path}" if self.name else path


def run(
    binding: Binding, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the library's ``forward`` with generated coefficients in place of its Parameters."""
    mode, cut = _mode(binding, args)
    if mode == "stream" and cut is not None:
        sources, unbound = binding.sources(), forward.__func__  # type: ignore[attr-defined]
        described = not kwargs and fast.fits(binding.spec, binding.map is not None, args)
        if described and binding.knows_basis(forward):
            return binding.fused(args[0], sources)
        if binding.treats_rows_alone(unbound, args, kwargs, cut.axis):
            return stream.run(binding.layer, unbound, args, kwargs, cut, sources, binding.tensors)
    return binding.whole(forward, args, kwargs, keep=mode == "materialize")


def _mode(binding: Binding, args: tuple[Any, ...]) -> tuple[str, Cut | None]:
    """Mode of this call, and how its input is cut if it is streamed."""
    spec, x, execution = binding.spec, args[0] if args else None, binding.execution
    unlimited = execution == "auto" and binding.budget is None
    if execution == "materialize" or unlimited or _traced():
        return "materialize", None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.device.type == "meta":
        return "regenerate", None
    budget = binding.scratch
    cut = None
    if execution != "regenerate" and rows_are_mixed(binding.layer, spec) is None:
        cut = stream.cut_rows(spec, x, budget)
    facts = policy.Facts(
        streams=cut is not None,
        generated=binding.generated_bytes,
        intermediate=stream.row_bytes(spec, x),
        allowed=binding.allowed,
    )
    return policy.choose(execution, facts), cut


def _versions(tensors: Mapping[str, Tensor]) -> list[int]:
    """How often each tensor was written to; empty where torch does not count."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return []
    try:
        return [tensor._version for tensor in tensors.values()]
    except RuntimeError:  # torch.func's wrappers
        return []


def _traced() -> bool:
    """Whether torch traces or transforms this call."""
    if torch.compiler.is_compiling():
        return True
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return transformed or torch._C._get_tracing_state() is not None


def _thread() -> int:
    # torch.compile cannot trace get_ident; a compiled frame runs in one thread anyway.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
