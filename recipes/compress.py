"""A trained KAN of any supported library into a compact file, with what that cost.

    python -m recipes.compress mypackage.models:make weights.safetensors compact.safetensors \
        --inputs inputs.npy --test test_inputs.npy test_labels.npy --bits 4

``mypackage.models:make`` is a function without arguments that makes the unconverted model; inputs
have no labels. Prints bytes, and accuracy where there are test data, before and after.
"""

import argparse
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import kanmeta

__all__ = ["Compressed", "accuracy_on", "compress", "main"]

Measure = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Compressed:
    """What :func:`compress` gave.

    Attributes:
        bytes_before: of the float32 safetensors file of the unconverted model.
        bytes_after: of the compact file.
        before, after: the user's measure of the unconverted model and of the one in the file; None
            without a measure.
        report: of the distilling.
    """

    bytes_before: int
    bytes_after: int
    before: float | None
    after: float | None
    report: kanmeta.DistillReport

    def as_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers."""
        return {**vars(self), "report": self.report.as_dict()}

    def __str__(self) -> str:
        """A Markdown table."""
        ratio = self.bytes_before / self.bytes_after
        rows = [
            ("trained", f"{self.bytes_before:,}", "1.0x", self.before),
            ("compact", f"{self.bytes_after:,}", f"{ratio:.1f}x", self.after),
        ]
        lines = ["| model | bytes | smaller | measure |", "|---|---|---|---|"]
        lines += [f"| {a} | {b} | {c} | {'' if m is None else f'{m:.4g}'} |" for a, b, c, m in rows]
        return "\n".join(lines)


def compress(
    build: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    path: Path,
    *,
    data: Tensor | Iterable[Any] | str | None,
    bits: int = 4,
    measure: Measure | None = None,
    convert: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Compressed:
    """Distil a trained model and write it to ``path``.

    Args:
        build: makes the unconverted model.
        weights: its ``state_dict``, trained.
        path: the compact file; its folder must exist.
        data: see :func:`kanmeta.distill`. With inputs, codes and codebooks are trained as well.
        bits: of a number of a prompt: 16, 8, 4, 3 or 2.
        measure: of a model in evaluation mode: accuracy, for instance.
        convert: arguments of :func:`kanmeta.convert`; default: one number an edge, a meta-learner
            of 16 hidden units a layer.
        generator: CPU generator of first values and samples.
        options: more arguments of :func:`kanmeta.distill`.

    Raises:
        KanMetaError: see :func:`kanmeta.convert`, :func:`kanmeta.distill`, :func:`kanmeta.save`.
        RuntimeError: the weights do not fit the model.
    """
    teacher = build()
    teacher.load_state_dict(dict(weights))
    teacher.eval()
    settings = {"clusters": "layer", "dim_z": 1, "hidden": 16, **(convert or {})}
    student = kanmeta.convert(build(), **settings, generator=generator)
    if bits != 16 and data is not None and not isinstance(data, str):
        options.setdefault("prompt_bits", bits)
    report = kanmeta.distill(student, teacher, data=data, generator=generator, **options)
    kanmeta.save(student, path, prompt_bits=bits)
    stored = kanmeta.load(build(), path).eval()
    # A tied tensor once, as in the file of whoever trained the model.
    state = {t.data_ptr(): (n, t.contiguous()) for n, t in teacher.state_dict().items()}
    return Compressed(
        bytes_before=len(save(dict(state.values()))),
        bytes_after=path.stat().st_size,
        before=None if measure is None else measure(teacher),
        after=None if measure is None else measure(stored),
        report=report,
    )


def accuracy_on(inputs: Tensor, labels: Tensor) -> Measure:
    """Return the measure: share of ``inputs`` whose largest output is at its label, in %."""

    @torch.no_grad()
    def measure(model: nn.Module) -> float:
        pairs = zip(torch.split(inputs, 1000), torch.split(labels, 1000), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
        return 100 * right / len(labels)

    return measure


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.compress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODULE:FUNCTION", help="makes the unconverted model")
    parser.add_argument("weights", type=Path, help="its state_dict as a safetensors file")
    parser.add_argument("out", type=Path, help="the compact file")
    parser.add_argument("--inputs", type=Path, help="unlabelled inputs, .npy")
    parser.add_argument("--test", type=Path, nargs=2, metavar="FILE", help="inputs, labels, .npy")
    parser.add_argument("--loss", choices=("kl", "mse"), help="of the outputs")
    parser.add_argument("--bits", type=int, default=4, choices=(16, 8, 4, 3, 2))
    parser.add_argument("--dim-z", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    module, _, function = args.model.partition(":")
    result = compress(
        getattr(importlib.import_module(module), function),
        load_file(args.weights),
        args.out,
        data="normal" if args.inputs is None else _tensor(args.inputs),
        bits=args.bits,
        loss=args.loss,
        measure=accuracy_on(*map(_tensor, args.test)) if args.test else None,
        convert={"dim_z": args.dim_z},
        generator=torch.Generator().manual_seed(args.seed),
    )
    print(result)


def _tensor(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path))


if __name__ == "__main__":
    main()
