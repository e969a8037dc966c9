"""The commands that make a file: convert, distill, materialize."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import RenderableType
from safetensors.torch import save_file
from torch import Tensor, nn

import kanmeta
from kanmeta.atomic import replacing
from kanmeta.cli import sizes
from kanmeta.cli.inputs import read_inputs, read_labels
from kanmeta.cli.options import (
    CONVERSION,
    FILE,
    MODEL,
    STORED,
    WEIGHTS,
    plan_arguments,
    with_options,
)
from kanmeta.cli.output import Output, bytes_text, check_new, verb
from kanmeta.cli.targets import CommandError, foreign, seeded_model
from kanmeta.codebook import BITS
from kanmeta.layer_metric import first_tensor
from kanmeta.prompt_bits import check_bits

__all__ = ["convert", "distill", "materialize"]

COUNT = click.IntRange(min=0)
NORMAL = Path("normal")  # of --data: made-up inputs, not a file


@click.command()
@with_options(*MODEL, click.argument("out", type=FILE), *WEIGHTS, *CONVERSION, *STORED)
@verb
def convert(
    target: str,
    arguments: str | None,
    out: Path,
    weights: Path | None,
    seed: int,
    bits: int | None,
    dtype: str | None,
    force: bool,
    **conversion: Any,
) -> Output:
    """Convert a model, to be trained, into the file OUT.

    What the weights had learnt is not kept, only their mean and spread and the tensors that stay:
    'kanmeta distill' keeps it.
    """
    check_new(out, force)
    check_bits(bits)
    model = seeded_model(target, arguments, weights, seed)
    kanmeta.convert(
        model, **plan_arguments(conversion), generator=torch.Generator().manual_seed(seed)
    )
    notes = [] if weights is None else [f"what {weights} had learnt is not kept: use distill"]
    return _saved(model, out, bits, dtype, {}, notes)


@click.command()
@with_options(*MODEL, click.argument("out", type=FILE))
@click.option("--weights", type=FILE, required=True, help="state_dict of the trained model.")
@click.option(
    "--data",
    type=FILE,
    help="Unlabelled inputs, .npy, .npz or .safetensors; or 'normal': made-up ones.",
)
@click.option("--key", help="Name of the array in --data.")
@click.option(
    "--test",
    type=FILE,
    nargs=2,
    metavar="INPUTS LABELS",
    help="Files like that of --data, the second with a class for each row: accuracy of both.",
)
@click.option("--loss", type=click.Choice(["kl", "mse"]), help="Of the outputs.")
@click.option("--steps", type=COUNT, default=1000, show_default=True, help="Of matching outputs.")
@click.option(
    "--layer-steps", type=COUNT, default=300, show_default=True, help="Of matching layers."
)
@click.option(
    "--fit-steps", type=COUNT, default=2000, show_default=True, help="Of fitting coefficients."
)
@with_options(*CONVERSION, *STORED)
@verb
def distill(
    target: str,
    arguments: str | None,
    out: Path,
    weights: Path,
    data: Path | None,
    key: str | None,
    test: tuple[Path, Path] | None,
    loss: str | None,
    steps: int,
    layer_steps: int,
    fit_steps: int,
    seed: int,
    bits: int | None,
    dtype: str | None,
    force: bool,
    **conversion: Any,
) -> Output:
    """Convert a trained model into the file OUT.

    What it has learnt is kept. With --data FILE the outputs are matched on these inputs, which is
    much better than the coefficients alone; with --bits below 16 as well, codes and codebooks are
    trained. --data normal is for models whose inputs have mean 0 and variance 1.
    """
    check_new(out, force)
    check_bits(bits)
    if data == NORMAL and key:
        raise CommandError("--key is for inputs in a file; leave it out for normal")
    if data is None and (key or loss):
        raise CommandError("--key and --loss are for --data: leave them out, or add it")
    inputs = str(data) if data == NORMAL else None if data is None else read_inputs(data, key)
    teacher = seeded_model(target, arguments, weights, seed)
    measure = None if test is None else _accuracy_on(*test)
    before = None if measure is None else measure(teacher)
    generator = torch.Generator().manual_seed(seed)
    student = kanmeta.convert(
        copy.deepcopy(teacher), **plan_arguments(conversion), generator=generator
    )
    few = bits if isinstance(inputs, Tensor) and bits in BITS else None
    with foreign("running the model on --data"):
        report = kanmeta.distill(
            student,
            teacher,
            data=inputs,
            loss=loss,
            prompt_bits=few,
            fit_steps=fit_steps,
            layer_steps=layer_steps,
            steps=steps,
            generator=generator,
        )
    notes = _distill_notes(inputs, bits, report)
    record: dict[str, Any] = {"report": report.as_dict()}
    made = _saved(student, out, bits, dtype, record, notes, sizes.distill_tables(report))
    accuracies = None
    if measure is not None and before is not None:
        stored = kanmeta.load(seeded_model(target, arguments, None, seed), out)
        accuracies = before, measure(stored)
    return sizes.compared(made, sizes.plain_bytes(teacher), accuracies)


def _accuracy_on(inputs: Path, classes: Path) -> Callable[[nn.Module], float]:
    """A function of a model: share of the rows whose largest output is at their class, in %."""
    rows = read_inputs(inputs)
    labels = read_labels(classes, len(rows))

    @torch.no_grad()
    def measure(model: nn.Module) -> float:
        model.eval()
        pairs = zip(torch.split(rows, 1000), torch.split(labels, 1000), strict=True)
        with foreign("running the model on --test"):
            right = sum(int((_scores(model(x)).argmax(1) == y).sum()) for x, y in pairs)
        return 100 * right / len(labels)

    return measure


def _scores(output: object) -> Tensor:
    """The output of a classifier."""
    scores = first_tensor(output)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise CommandError(
            f"--test is for models that give scores (N, C) of C >= 2 classes; this one gives "
            f"{(*scores.shape,)}: leave it out"
        )
    return scores


def _distill_notes(
    inputs: Tensor | str | None, bits: int | None, report: kanmeta.DistillReport
) -> list[str]:
    """What a user should know of how it was done without inputs in a file."""
    if isinstance(inputs, Tensor):
        return []
    notes = []
    if inputs is None:
        notes.append("without --data only coefficients are matched; --data normal needs no file")
    elif report.stages[-1].note.startswith("left out"):
        notes.append(f"made-up inputs are {report.stages[-1].note}: only coefficients are matched")
    if bits in BITS:
        notes.append(f"codes of {bits} bits are not trained without inputs: --data FILE")
    return notes


@click.command()
@click.argument("file", type=FILE)
@click.argument("out", type=FILE)
@click.option("--model", "target", required=True, help="module:function that makes the model.")
@click.option("--args", "arguments", help="JSON list or object: arguments of the function.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@verb
def materialize(file: Path, out: Path, target: str, arguments: str | None, force: bool) -> Output:
    """Turn a compact file into plain weights.

    OUT is a safetensors file with the library's own state_dict.
    """
    check_new(out, force)
    model = kanmeta.materialize(kanmeta.load(seeded_model(target, arguments, None, 0), file))
    state = model.state_dict()
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise CommandError(f"the model's state_dict holds {', '.join(odd)}, which are no tensors")
    with replacing(out) as partial:
        save_file({n: t.detach().contiguous().clone() for n, t in state.items()}, partial)
    before, after = file.stat().st_size, out.stat().st_size
    text = f"{file}: {before:,} bytes -> {out}: {after:,} bytes, {len(state)} tensors"
    return Output({"file": str(out), "file_bytes": after, "tensors": [*state]}, [text])


def _saved(
    model: nn.Module,
    out: Path,
    bits: int | None,
    dtype: str | None,
    record: dict[str, Any],
    notes: list[str],
    shown: Sequence[RenderableType] = (),
) -> Output:
    kanmeta.save(
        model, out, dtype=None if dtype is None else getattr(torch, dtype), prompt_bits=bits
    )
    summary = kanmeta.summary(model, prompt_bits=bits)
    size = out.stat().st_size
    before, after = summary.parameters_before, summary.parameters_after
    record = {
        "file": str(out),
        "file_bytes": size,
        "parameters": {"before": before, "after": after},
    } | record
    text = (
        f"{out}: {size:,} bytes; parameters {before:,} -> {after:,}, with gradients and Adam "
        f"{bytes_text(summary.bytes_before)} -> {bytes_text(summary.bytes_after)}"
    )
    return Output(record, [*shown, text], notes)
