"""The commands, thin, so that each can be read in one go; ``making.py`` has those of new files."""

from pathlib import Path
from typing import Any

import click
import torch

import kanmeta
from kanmeta.cli import bench as benching
from kanmeta.cli import compact, making, sizes, tensors
from kanmeta.cli.options import (
    CONVERSION,
    FILE,
    MODEL,
    WEIGHTS,
    plan_arguments,
    settings_record,
    with_options,
)
from kanmeta.cli.output import Output, verb
from kanmeta.cli.targets import CommandError, is_file, read_tensors, seeded_model
from kanmeta.errors import ForeignCheckpointError

__all__ = ["app"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(kanmeta.__version__, prog_name="kanmeta")
def app() -> None:
    """Turn Kolmogorov-Arnold Networks into MetaKANs, and look at what that gives.

    TARGET is module:function or 'module:Class([4, 8, 1], grid=5)', which makes the library's own
    model; it is imported from the current folder or what is installed.
    """


@app.command()
@with_options(*MODEL, *WEIGHTS, *CONVERSION)
@click.option("--bits", type=int, help="Bits of a prompt's number in the file.")
@verb
def inspect(
    target: str, arguments: str | None, weights: Path | None, bits: int | None, **conversion: Any
) -> Output:
    """Say what a conversion would give.

    Layers and their adapters, parameters, memory of training, bytes on disk. TARGET may also be a
    file: of the library's tensors, or a compact one.
    """
    notes = []
    if is_file(target):
        if arguments is not None or weights is not None:
            raise CommandError("a file takes neither --args nor --weights")
        try:
            record = compact.info_record(Path(target))
            return Output({"kind": "compact"} | record, compact.info_tables(record))
        except ForeignCheckpointError:
            found = tensors.skeleton(read_tensors(Path(target)))
        model, kind = found.model, "tensors"
        conversion["adapters"] = found.adapters
        notes = [
            *tensors.ambiguities(found.candidates),
            "a file does not tell parameters from buffers: all numbers are counted as trained",
        ]
    else:
        model, kind = seeded_model(target, arguments, weights, 0), "model"
    planned = kanmeta.plan(model, **plan_arguments(conversion))
    record = sizes.plan_record(planned)
    record |= sizes.size_record(model, planned, bits)
    head = {"kind": kind, "target": target, "settings": settings_record(conversion)}
    return Output(head | record, sizes.plan_tables(record), [*notes, *planned.notes])


@app.command()
@click.argument("file", type=FILE)
@verb
def info(file: Path) -> Output:
    """Show the header of a compact file."""
    record = compact.info_record(file)
    return Output(record, compact.info_tables(record))


@app.command()
@with_options(*MODEL)
@click.option("--input", "shapes", multiple=True, required=True, help="Sizes: 128,784; repeatable.")
@click.option("--budget", type=int, help="Bytes of scratch for 'stream' and 'auto'.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@with_options(*WEIGHTS, *CONVERSION)
@verb
def bench(
    target: str,
    arguments: str | None,
    weights: Path | None,
    shapes: tuple[str, ...],
    budget: int | None,
    repeats: int,
    threads: int,
    **conversion: Any,
) -> Output:
    """Measure memory and time of a training step.

    In each mode of execution, on random inputs of the sizes --input.
    """
    sizes_of_inputs = [benching.shape_of(text) for text in shapes]
    model = seeded_model(target, arguments, weights, 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        record = benching.bench_record(
            model,
            plan_arguments(conversion),
            sizes_of_inputs,
            budget,
            repeats,
            torch.Generator().manual_seed(0),
        )
    finally:
        torch.set_num_threads(before)
    return Output({"target": target} | record, benching.bench_tables(record))


app.add_command(making.convert)
app.add_command(making.distill)
app.add_command(making.materialize)
