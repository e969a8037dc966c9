"""What a conversion saves: parameters, optimiser memory, per layer and in all."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from kanmeta.access import complete_layers
from kanmeta.binding import Binding
from kanmeta.prompt_bits import check_bits, prompt_widths

__all__ = ["LayerSummary", "Summary", "summary"]

_ADAM = 3  # numbers kept beside each trainable one: its gradient and Adam's two moments


@dataclass(frozen=True)
class LayerSummary:
    """Parameters of one layer's coefficients before, of its prompts after (no meta-learner)."""

    name: str
    class_name: str
    edges: int
    dim_w: int
    before: int
    after: int


@dataclass(frozen=True)
class Summary:
    """Sizes of a converted model and of the model it came from.

    Attributes:
        layers: the converted layers.
        meta_learners: number of meta-learners.
        meta_parameters: parameters of all meta-learners.
        parameters_before, parameters_after: all Parameters, frozen ones included.
        trainable_before, trainable_after: those that require gradients.
        bytes_before, bytes_after: parameters, gradients and Adam's moments, in bytes.
        edge_bytes_before, edge_bytes_after: stored bytes of an edge, mean over the layers' edges:
            of its coefficients, and of its prompt in a file. Meta-learners are not counted, nor
            what compression of a file of few-bit prompts takes off further.
    """

    layers: tuple[LayerSummary, ...]
    meta_learners: int
    meta_parameters: int
    parameters_before: int
    parameters_after: int
    trainable_before: int
    trainable_after: int
    bytes_before: int
    bytes_after: int
    edge_bytes_before: float
    edge_bytes_after: float

    def __str__(self) -> str:
        """Table with one line a layer and the totals."""
        rows = [("layer", "class", "edges", "dim_w", "before", "after")]
        rows += [
            (
                layer.name or "(root)",
                layer.class_name,
                f"{layer.edges:,}",
                str(layer.dim_w),
                f"{layer.before:,}",
                f"{layer.after:,}",
            )
            for layer in self.layers
        ]
        rows += [
            (f"{self.meta_learners} meta-learner(s)", "", "", "", "0", f"{self.meta_parameters:,}"),
            ("model", "", "", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}"),
        ]
        width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, width, strict=True))
            )
            for row in rows
        ]
        lines.append(
            f"parameters, gradients and Adam: {self.bytes_before:,} -> {self.bytes_after:,} bytes "
            f"({self.bytes_before / max(self.bytes_after, 1):.2f}x). Activations are not counted."
        )
        lines.append(
            f"an edge in a file: {self.edge_bytes_before:.4g} -> {self.edge_bytes_after:.4g} bytes"
        )
        return "\n".join(lines)


def summary(model: nn.Module, *, prompt_bits: int | None = None) -> Summary:
    """Compare a converted model with the model it came from.

    >>> summary = kanmeta.summary(kanmeta.convert(KAN([64, 32, 10])))
    >>> summary.parameters_before, summary.parameters_after
    (23680, 2729)
    >>> print(summary)                                                  # doctest: +ELLIPSIS
    layer              class      edges  dim_w  before  after
    ...

    Args:
        model: a converted model.
        prompt_bits: of the file whose bytes an edge are wanted, see :func:`kanmeta.save`.

    Returns:
        A printable record.

    Raises:
        NothingToConvertError: the model is not converted.
        CheckpointError: prompts cannot be stored in ``prompt_bits`` bits.
    """
    check_bits(prompt_bits)
    layers = complete_layers(model)
    before = [_coefficients(binding) for binding in layers.values()]
    ours = {binding.prompts for binding in layers.values()}
    metas = {binding.meta_learner for binding in layers.values()}
    ours |= {p for meta in metas for p in meta.parameters()}
    everything = _Count.of((p, p.requires_grad) for p in model.parameters())
    replaced = sum(before, _Count())
    kept = everything - _Count.of((p, p.requires_grad) for p in ours)
    original = kept + replaced
    edges = sum(b.spec.edges for b in layers.values())
    widths = prompt_widths([b.prompts for b in layers.values()], prompt_bits)
    stored = sum(b.prompts.numel() * w / 8 for b, w in zip(layers.values(), widths, strict=True))
    plain = sum(
        n.total * b.prompts.element_size() for n, b in zip(before, layers.values(), strict=True)
    )
    return Summary(
        layers=tuple(
            LayerSummary(
                name, b.spec.class_name, b.spec.edges, b.spec.dim_w, n.total, b.prompts.numel()
            )
            for (name, b), n in zip(layers.items(), before, strict=True)
        ),
        meta_learners=len(metas),
        meta_parameters=sum(p.numel() for meta in metas for p in meta.parameters()),
        parameters_before=original.total,
        parameters_after=everything.total,
        trainable_before=original.trainable,
        trainable_after=everything.trainable,
        bytes_before=original.bytes,
        bytes_after=everything.bytes,
        edge_bytes_before=plain / edges,
        edge_bytes_after=stored / edges,
    )


class _Count(NamedTuple):
    total: int = 0
    trainable: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, tensors: Iterable[tuple[Tensor, bool]]) -> "_Count":
        """Count tensors, each with whether it is (or was) trainable."""
        count = cls()
        for tensor, trainable in tensors:
            n = tensor.numel()
            copies = 1 + _ADAM if trainable else 1
            count += cls(n, n * trainable, n * tensor.element_size() * copies)
        return count

    def __add__(self, other: "_Count") -> "_Count":  # type: ignore[override]
        return _Count(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: "_Count") -> "_Count":
        return _Count(*(a - b for a, b in zip(self, other, strict=True)))


def _coefficients(binding: Binding) -> _Count:
    """Count the Parameters that a layer had before it was converted."""
    like = binding.prompts
    shapes, trainable = binding.spec.shapes, binding.spec.trainable
    return _Count.of(
        (like.new_empty((), device="meta").expand(shapes[path]), trainable[path]) for path in shapes
    )
