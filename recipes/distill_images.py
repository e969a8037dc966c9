"""A trained KAN on (Fashion-)MNIST, distilled into a few numbers an edge, and stored small.

    python -m recipes.distill_images --seed 0                     # trains the teacher first
    python -m recipes.distill_images --teacher kan.safetensors    # state_dict of [784, 32, 10]

For each ``dim_z``: from the coefficients alone, from what they do at standard normal inputs, with
12,800 unlabelled images, and with two epochs of them; then files of every width. Writes a JSON file
each under ``results/distill/``, and the tables of all results: :mod:`recipes.distill_table`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.data import DATASETS, DataError, load_images
from recipes.distill_models import (
    WIDTHS,
    distilled,
    from_scratch,
    scratch_options,
    stored,
    teacher,
    teacher_options,
)
from recipes.distill_table import refresh
from recipes.records import code_state, hardware, read_json, versions, write_json
from recipes.training import Pixels, accuracy, one_thread

__all__ = ["main"]

BITS = (16.0, 8.0, 4.33, 4.17, 4.0, 3.47, 3.33, 3.0, 2.0)
RUNS = ("none", "normal", "100 batches", "2 epochs")
WHOLE = (16, 8, 4, 3, 2)  # widths of files
BLIND = ("none", "normal")  # without data: not worth files


def run(args: argparse.Namespace, images: Any) -> None:
    """Everything for one seed."""
    data = Pixels.of(images, args.device)
    working = args.out / "runs" / "distill"
    working.mkdir(parents=True, exist_ok=True)
    results = args.out / "results" / "distill"
    label = args.dataset if args.grid == 5 else f"{args.dataset}-G{args.grid}"
    path = args.teacher or working / f"{label}-kan-s{args.seed}.safetensors"
    source = teacher(path, data, args.seed, args.grid).to(args.device)
    common = {
        "dataset": args.dataset,
        "data": images.fingerprint(),
        "seed": args.seed,
        "teacher": {"test_accuracy": accuracy(source, data), "bytes": path.stat().st_size},
        "widths": WIDTHS,
        "grid": args.grid,
        "code": code_state(),
        "versions": versions(),
        "hardware": hardware(torch.device(args.device)),
    }
    file = working / f"s{args.seed}.safetensors"
    pool = data.inputs(slice(0, data.train))
    name = f"{label}-scratch-s{args.seed}"
    path = results / f"{name}.json"
    known = read_json(path)["files"] if path.exists() else []
    missing = [b for b in args.bits if b not in {f["bits"] for f in known}]
    if args.scratch and missing:
        begin = time.perf_counter()
        model = from_scratch(working / f"{name}.safetensors", data, args.seed, args.grid)
        options = scratch_options(args.grid)
        code = {"code": code_state()}  # those that are known may come from older code
        made = [stored(model, options, data, pool, bits, file) | code for bits in missing]
        files = known + made
        files.sort(key=lambda f: -f["bits"])
        row = {"test_accuracy": accuracy(model, data), "dim_z": 1, "files": files}
        row |= {"kind": "from scratch", "data_used": "all, with labels"}
        row["seconds"] = round(time.perf_counter() - begin, 1)
        write_json(path, common | row)
        print(f"{name}: {row['test_accuracy']:.2f} %")
    for dim_z, what in [(z, w) for w in args.runs for z in args.dim_z]:
        name = f"{label}-z{dim_z}-{what.replace(' ', '')}-s{args.seed}"
        if (results / f"{name}.json").exists():
            continue
        begin = time.perf_counter()
        student, report = distilled(source, data, dim_z, what, args.seed, args.grid)
        row = {"test_accuracy": accuracy(student, data), "report": report.as_dict()}
        tune = pool if what == "2 epochs" else None
        wanted = [] if what in BLIND else [b for b in args.bits if tune is not None or b in WHOLE]
        files = [stored(student, teacher_options(args.grid), data, tune, b, file) for b in wanted]
        row |= {"dim_z": dim_z, "data_used": what, "files": files, "kind": "distilled"}
        row["seconds"] = round(time.perf_counter() - begin, 1)
        write_json(results / f"{name}.json", common | row)
        print(f"{name}: {common['teacher']['test_accuracy']:.2f} -> {row['test_accuracy']:.2f} %")
    refresh(results)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.distill_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", choices=DATASETS, default="fashion-mnist")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="a trained model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dim-z", type=int, nargs="*", default=[1, 2, 4], metavar="N")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=RUNS, help="which data to use")
    parser.add_argument("--grid", type=int, default=5, metavar="G", help="intervals of the grid")
    parser.add_argument("--bits", type=float, nargs="*", choices=BITS, default=BITS)
    parser.add_argument("--scratch", action="store_true", help="and a model trained from scratch")
    parser.add_argument("--data-root", type=Path, metavar="FOLDER", help="where the data set is")
    parser.add_argument("--download", action="store_true", help="fetch the data set if needed")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--out", type=Path, default=Path(), help="parent of results/ and runs/")
    args = parser.parse_args(argv)
    try:
        images = load_images(args.dataset, args.data_root, args.download)
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    with one_thread():
        run(args, images)


if __name__ == "__main__":
    main()
