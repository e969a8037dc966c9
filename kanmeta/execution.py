"""How generated coefficients reach the library's own forward. The seam for other modes is here.

``"materialize"``: generate all coefficients of a layer, then run the library's forward on them.
``"auto"`` picks a mode per layer; so far there is one to pick.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta.errors import CoefficientWriteError, PlanError
from kanmeta.guard import GeneratedTensor, refusal
from kanmeta.meta import MetaLearner
from kanmeta.spec import LayerSpec

__all__ = ["EXECUTIONS", "Binding", "resolve", "run"]

EXECUTIONS = ("auto", "materialize")


def resolve(execution: str) -> str:
    """Name of the mode that ``execution`` stands for.

    Raises:
        PlanError: there is no such mode.
    """
    if execution not in EXECUTIONS:
        raise PlanError(f"execution={execution!r}: expected one of {', '.join(EXECUTIONS)}")
    return "materialize"


class Binding:
    """What a converted layer knows: its shape, its prompts' owner, its meta-learner.

    It sits in the layer's ``__dict__``, so the meta-learner is not registered a second time:
    ``state_dict`` holds it once, and ``deepcopy`` and ``pickle`` keep the sharing.

    Attributes:
        name: the layer's name when it was converted, for messages.
        layer: the converted layer; owns ``prompts``, ``coefficient_scale``, ``coefficient_offset``.
        spec: where its coefficients go.
        meta_learner: shared with the other layers of its cluster.
        execution: name of the mode that :func:`run` uses.
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

    def coefficients(self) -> Tensor:
        """Generate w = offset + scale * M(z), ``(*edge_shape, dim_w)``.

        After a grid update the basis coefficients are T (offset + scale * M(z)).
        """
        z, layer = self.prompts, self.layer
        with _no_autocast(z.device.type):
            w = self.meta_learner(z, layer.coefficient_scale, layer.coefficient_offset)
            w = w if self.map is None else self._mapped(w, self.map)
        assert isinstance(w, Tensor)
        return w

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
    tensors = binding.spec.split(binding.coefficients())
    versions = _versions(tensors)
    binding.active = (_thread(), tensors)
    try:
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


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    # A Parameter keeps its dtype under autocast, and so must what stands in for it.
    if device_type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _thread() -> int:
    # torch.compile cannot trace get_ident; a compiled frame runs in one thread anyway.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()
