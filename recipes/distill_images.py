"""A trained KAN on (Fashion-)MNIST, distilled into a few numbers an edge, and stored small.

    python -m recipes.distill_images --seed 0                     # trains the teacher first
    python -m recipes.distill_images --teacher kan.safetensors    # state_dict of [784, 32, 10]

For each ``dim_z``: from the coefficients alone, with 12,800 unlabelled images, and with two epochs
of them; then files of every width. Writes a JSON file each under ``results/distill/``; the table of
all results is ``results/distill/README.md``.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import kanmeta
from recipes.data import DATASETS, DataError, load_images
from recipes.images_fc import KAN, METAKAN
from recipes.images_run import BASES, CLASSES, INPUTS, optimizer
from recipes.records import code_state, hardware, read_json, versions, write_json
from recipes.training import Pixels, accuracy, fit, one_thread

__all__ = ["main", "table"]

WIDTHS = (INPUTS, 32, CLASSES)
EPOCHS = 20  # of teachers and of models trained from scratch, as in images_fc
UNLABELLED = 100 * 128  # images
EPOCH_STEPS = 469  # of 128 images
# Width of the meta-learners of distilled models, one a layer: wide enough to bend, small in a file.
HIDDEN = 16
BITS = (16, 8, 4, 3, 2)
RUNS = ("none", "100 batches", "2 epochs")


def _build(options: dict[str, Any]) -> nn.Module:
    return BASES["kan"](list(WIDTHS), **options)


def _trained(model: nn.Module, data: Pixels, settings: Any, seed: int) -> nn.Module:
    fit(model, data, optimizer(model, settings), epochs=EPOCHS, batch=settings.batch, seed=seed)
    return model


def teacher(path: Path, data: Pixels, seed: int) -> nn.Module:
    """The unconverted model in ``path``, which is trained and written first if there is none."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _build(dict(KAN.options))
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        _trained(model, data, KAN, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model


def from_scratch(path: Path, data: Pixels, seed: int) -> nn.Module:
    """The converted model of images_fc with the fewest hidden units, trained from scratch.

    Without biases and with one number an edge, two hidden units do what 256 do.
    """
    settings = replace(METAKAN, convert={**(METAKAN.convert or {}), "hidden": 256})
    model = _build(dict(settings.options))
    if path.exists():
        kanmeta.load(model, path)
    else:
        generator = torch.Generator().manual_seed(seed)
        kanmeta.convert(model, **(settings.convert or {}), generator=generator)
        _trained(model, data, settings, seed)
        kanmeta.save(model, path)
    return two_units(model, kanmeta.convert(_build(dict(settings.options)), hidden=2, bias=False))


@torch.no_grad()
def two_units(model: nn.Module, small: nn.Module) -> nn.Module:
    """Give ``small``, converted with two hidden units, the function of ``model``, exactly."""
    (wide,), (narrow,) = (kanmeta.meta_learners(m).values() for m in (model, small))
    w = wide.weight1
    state = {n: t for n, t in model.state_dict().items() if "meta_learner" not in n}
    small.load_state_dict(state, strict=False)
    narrow.weight1.copy_(torch.tensor([[1.0], [-1.0]]))
    narrow.weight2.copy_(wide.weight2 @ torch.cat([w.relu(), (-w).relu()], dim=1))
    return small


def stored(
    model: nn.Module,
    options: dict[str, Any],
    data: Pixels,
    images: Tensor | None,
    bits: int,
    to: Path,
) -> dict[str, Any]:
    """Bytes and accuracy of the file, before and, given images, after tuning the codebooks."""

    def saved(student: nn.Module) -> tuple[int, float]:
        # Not in half precision: an error of the meta-learner is common to all edges and adds up.
        kanmeta.save(student, to, prompt_bits=bits)
        fresh = kanmeta.load(_build(options), to).to(data.labels.device)
        return to.stat().st_size, accuracy(fresh, data)

    size, reached = saved(model)
    row = {"bits": bits, "bytes": size, "test_accuracy": reached}
    if images is not None and bits in (4, 3, 2):
        tuned = copy.deepcopy(model)
        kanmeta.distill(
            tuned,
            model,
            data=images,
            from_student=True,
            prompt_bits=bits,
            steps=2 * EPOCH_STEPS,
            generator=torch.Generator().manual_seed(bits),
        )
        row["tuned_bytes"], row["tuned_accuracy"] = saved(tuned)
    return row


def distilled(
    source: nn.Module, data: Pixels, dim_z: int, what: str, seed: int
) -> tuple[nn.Module, kanmeta.DistillReport]:
    """A student with ``dim_z`` numbers an edge of the teacher ``source``."""
    generator = torch.Generator().manual_seed(seed)
    student = kanmeta.convert(
        _build(dict(KAN.options)), clusters="layer", dim_z=dim_z, hidden=HIDDEN, generator=generator
    ).to(data.labels.device)
    rows = torch.randperm(data.train, generator=generator)
    arguments: dict[str, Any] = {}
    if what == "100 batches":
        arguments = {"data": data.inputs(rows[:UNLABELLED].to(data.labels.device))}
    elif what == "2 epochs":
        arguments = {"data": data.inputs(rows.to(data.labels.device)), "layer_steps": 600}
        arguments["steps"] = 2 * EPOCH_STEPS
    report = kanmeta.distill(student, source, generator=generator, **arguments)
    return student, report


def run(args: argparse.Namespace, images: Any) -> None:
    """Everything for one seed."""
    data = Pixels.of(images, args.device)
    working = args.out / "runs" / "distill"
    working.mkdir(parents=True, exist_ok=True)
    results = args.out / "results" / "distill"
    path = args.teacher or working / f"{args.dataset}-kan-s{args.seed}.safetensors"
    source = teacher(path, data, args.seed).to(args.device)
    common = {
        "dataset": args.dataset,
        "data": images.fingerprint(),
        "seed": args.seed,
        "teacher": {"test_accuracy": accuracy(source, data), "bytes": path.stat().st_size},
        "widths": WIDTHS,
        "code": code_state(),
        "versions": versions(),
        "hardware": hardware(torch.device(args.device)),
    }
    file = working / f"s{args.seed}.safetensors"
    pool = data.inputs(slice(0, data.train))
    name = f"{args.dataset}-scratch-s{args.seed}"
    if args.scratch and not (results / f"{name}.json").exists():
        begin = time.perf_counter()
        model = from_scratch(working / f"{name}.safetensors", data, args.seed)
        options = dict(METAKAN.options)
        files = [stored(model, options, data, pool, bits, file) for bits in BITS]
        row = {"test_accuracy": accuracy(model, data), "dim_z": 1, "files": files}
        row |= {"kind": "from scratch", "data_used": "all, with labels"}
        row["seconds"] = round(time.perf_counter() - begin, 1)
        write_json(results / f"{name}.json", common | row)
        print(f"{name}: {row['test_accuracy']:.2f} %")
    for dim_z, what in [(z, w) for w in RUNS for z in args.dim_z]:
        name = f"{args.dataset}-z{dim_z}-{what.replace(' ', '')}-s{args.seed}"
        if (results / f"{name}.json").exists():
            continue
        begin = time.perf_counter()
        student, report = distilled(source, data, dim_z, what, args.seed)
        row = {"test_accuracy": accuracy(student, data), "report": report.as_dict()}
        tune = pool if what == "2 epochs" else None
        files = (
            []
            if what == "none"
            else [stored(student, dict(KAN.options), data, tune, bits, file) for bits in BITS]
        )
        row |= {"dim_z": dim_z, "data_used": what, "files": files, "kind": "distilled"}
        row["seconds"] = round(time.perf_counter() - begin, 1)
        write_json(results / f"{name}.json", common | row)
        print(f"{name}: {common['teacher']['test_accuracy']:.2f} -> {row['test_accuracy']:.2f} %")
    (results / "README.md").write_text(table(results))


def table(folder: Path) -> str:
    """Markdown tables of all results in ``folder``: accuracy, then bytes."""
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    lines = [
        "| data set, seed | model | numbers an edge | data | teacher, % | test accuracy, % |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['dataset']}, {r['seed']} | {r['kind']} | {r['dim_z']} | {r['data_used']} | "
        f"{r['teacher']['test_accuracy']:.2f} | {r['test_accuracy']:.2f} |"
        for r in found
    ]
    lines += [
        "",
        "| data set, seed | model | numbers an edge | data | bits | teacher's bytes | bytes "
        "| smaller | test accuracy, % | tuned: bytes | tuned: accuracy, % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        for f in r["files"]:
            before = r["teacher"]["bytes"]
            tuned = (
                f"{f['tuned_bytes']:,} | {f['tuned_accuracy']:.2f}" if "tuned_bytes" in f else "|"
            )
            lines.append(
                f"| {r['dataset']}, {r['seed']} | {r['kind']} | {r['dim_z']} | {r['data_used']} | "
                f"{f['bits']} | {before:,} | {f['bytes']:,} | {before / f['bytes']:.1f}x | "
                f"{f['test_accuracy']:.2f} | {tuned} |"
            )
    return "\n".join([*lines, ""])


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
    parser.add_argument("--scratch", action="store_true", help="and a model trained from scratch")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the data set is")
    parser.add_argument("--download", action="store_true", help="fetch the data set if needed")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--out", type=Path, default=Path(), help="parent of results/ and runs/")
    args = parser.parse_args(argv)
    try:
        images = load_images(args.dataset, args.data, args.download)
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    with one_thread():
        run(args, images)


if __name__ == "__main__":
    main()
