"""What a converted layer knows, and how its coefficients are generated from its prompts."""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kanmeta import policy, stream
from kanmeta.generate import from_matrices, no_autocast
from kanmeta.guard import GeneratedTensor
from kanmeta.meta import MetaLearner
from kanmeta.shards import refuse_shards
from kanmeta.spec import LayerSpec

__all__ = ["Binding", "this_thread", "traced"]


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
        return self.scratch_for(None)

    def scratch_for(self, x: Tensor | None) -> int:
        """The same for a given input."""
        if self.budget is not None:
            return self.budget
        size = 0 if x is None else x.numel() * x.element_size()
        on_gpu = self.prompts.device.type != "cpu"
        return policy.default_budget(self.spec.edges, self.spec.dim_w, size, on_gpu)

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
        small = policy.is_left_to_autograd(self.execution, self.generated_bytes, self.budget)
        if not keep and not small and not traced():
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
        z, matrices, coefficient_map = sources[0], stream.matrices_of(sources), sources[5]
        assert z is not None
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

    def read(self, path: str) -> Tensor:
        """Return the tensor at ``path`` in the library's own layout."""
        active = self.active  # once: another thread may set it
        if active is not None and active[0] == this_thread():
            return active[1][path]
        tensor = self.spec.split(self.coefficients())[path]
        return GeneratedTensor.wrap(tensor, self.label(path))

    def is_reading(self, path: str, value: object) -> bool:
        """Whether ``value`` is the tensor that the forward pass in progress reads at ``path``."""
        active = self.active
        return active is not None and active[0] == this_thread() and value is active[1][path]

    def label(self, path: str) -> str:
        """Name of the tensor at ``path``, for messages."""
        return f"{self.name}.{path}" if self.name else path


def traced() -> bool:
    """Whether torch traces or transforms this call."""
    if torch.compiler.is_compiling():
        return True
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    fake = torch._C._TorchDispatchModeKey.FAKE
    transformed = transformed or torch._C._get_dispatch_mode(fake) is not None
    return transformed or torch._C._get_tracing_state() is not None


def this_thread() -> int:
    """Number of this thread; 0 in a compiled frame, which runs in one and cannot ask."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
