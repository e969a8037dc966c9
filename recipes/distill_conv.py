"""A trained 4-layer KANConv network on CIFAR-10, distilled and stored small.

    python -m recipes.distill_conv --data-root cifar10.npz --seed 0

Trains the network, and its converted twin from scratch, with shifted and mirrored images. The
network is then distilled: by standard normal inputs, and by the images that it was trained with,
without labels; one student is trained on, with labels. Files of few bits follow of the models with
one number a kernel tap. Tests on the test set and on training images that ``--limit`` left out.
Trained networks are kept in ``runs/distill/``; the seconds of a result are without training where
they were there before. Writes a JSON file each under ``results/distill/``, and the tables there:
:mod:`recipes.distill_table`.
"""

import argparse
import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import kanmeta
from recipes.conv_images import Shown, limited
from recipes.data import DataError, load_images
from recipes.distill_table import refresh
from recipes.images_conv import augmentation
from recipes.images_run import Shaped
from recipes.models import Settings, optimizer
from recipes.records import code_state, hardware, versions, write_json
from recipes.reference.conv_kan import KANConv2DLayer
from recipes.reference.conv_net import ConvNet
from recipes.training import Pixels, accuracy, one_thread, train_epoch

__all__ = ["main"]

CHANNELS, STRIDES = (16, 32, 64, 64), (2, 2, 2, 1)  # a quarter of those of images_conv at the end
EPOCHS, BATCH = 15, 64
CONVERT: dict[str, Any] = {"clusters": "layer", "dim_z": 1, "hidden": 16}
KAN = Settings(
    base="", options={}, convert=None, lr=2e-3, prompt_lr=None, meta_lr=None, weight_decay=1e-2,
    prompt_weight_decay=None, batch=BATCH,
)  # fmt: skip
FROM_SCRATCH = Settings(
    base="", options={}, convert=CONVERT, lr=2e-3, prompt_lr=1e-2, meta_lr=1e-3, weight_decay=1e-4,
    prompt_weight_decay=1e-4, batch=BATCH,
)  # fmt: skip
TRAINED_ON = replace(FROM_SCRATCH, prompt_lr=2e-3, meta_lr=3e-4)
HIDDEN = 256  # of distilled students that are not stored: a longer curve fits more
FIT_STEPS, LAYER_STEPS, STEPS, TUNING_STEPS = 4000, 600, 2000, 500
RUNS = ((4, "normal"), (1, "training images"), (2, "training images"))  # dim_z, data
BITS = 3.47  # 11 numbers a codebook, in a file of 4 bits


def build(seed: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network, which takes flat images, with its first values."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = ConvNet(KANConv2DLayer, shape[0], 10, CHANNELS, STRIDES, norm_layer=nn.BatchNorm2d)
    return Shaped(net, shape)


def converted(seed: int, shape: tuple[int, int, int], **changes: Any) -> nn.Module:
    """Its twin."""
    generator = torch.Generator().manual_seed(seed)
    return kanmeta.convert(build(seed, shape), **(CONVERT | changes), generator=generator)


def train(model: nn.Module, settings: Settings, data: Pixels, seed: int) -> nn.Module:
    """Give either the same epochs on the same augmented images, in place; return it."""
    optimize, augment = optimizer(model, settings), augmentation(data)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for epoch in range(EPOCHS):
            train_epoch(
                model, data, optimize, epoch=epoch, epochs=EPOCHS, batch=BATCH, seed=seed,
                augment=augment,
            )  # fmt: skip
    return model


def teacher(path: Path, data: Pixels, seed: int) -> nn.Module:
    """The network in ``path``, which is trained and written first if there is none."""
    model = build(seed, data.shape)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    train(model, KAN, data, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model


def run(args: argparse.Namespace) -> None:
    """One seed."""
    images = load_images("cifar-10", (args.data_root,) if args.data_root else (), args.download)
    data = Pixels.of(limited(images, args.limit) if args.limit else images)
    some = f"-{args.limit}" if args.limit else ""
    label = f"cifar-10-kanconv{some}-s{args.seed}"
    path = args.out / "runs" / "distill" / f"{label}.safetensors"
    source = teacher(path, data, args.seed)
    pool = data.inputs(slice(0, data.train))
    folder = args.out / "results" / "distill"
    common = {
        "dataset": "cifar-10",
        "network": "KANConv x 4",
        "data": images.fingerprint(),
        "images": data.train,
        "test_images": len(data.labels) - data.train,
        "seed": args.seed,
        "teacher": {"test_accuracy": accuracy(source, data), "bytes": path.stat().st_size},
        "widths": CHANNELS,
        "code": code_state(),
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }

    def distil(student: nn.Module, towards: nn.Module, **options: Any) -> kanmeta.DistillReport:
        generator = torch.Generator().manual_seed(args.seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)
            return kanmeta.distill(student, towards, generator=generator, **options)

    def stored(model: nn.Module) -> dict[str, Any]:
        small = copy.deepcopy(model)
        tuning = {"data": pool, "batch_size": BATCH, "prompt_bits": BITS, "steps": TUNING_STEPS}
        distil(small, model, from_student=True, **tuning)
        to = path.with_name(f"{label}-compact.safetensors")
        kanmeta.save(small, to, prompt_bits=4, dtype=torch.float16)
        fresh = kanmeta.load(build(args.seed, data.shape), to)
        size, reached = to.stat().st_size, accuracy(fresh, data)
        return {"bits": BITS, "tuned_bytes": size, "tuned_accuracy": reached, "code": code_state()}

    def record(
        name: str, make: Callable[[], tuple[nn.Module, dict[str, Any]]], store: bool
    ) -> None:
        file = folder / f"{label.replace('-s', f'-{name}-s')}.json"
        if file.exists():
            return
        begin = time.perf_counter()
        model, row = make()
        row["test_accuracy"] = accuracy(model, data)
        row["files"] = [stored(model)] if store else []
        row["seconds"] = round(time.perf_counter() - begin, 1)
        write_json(file, common | row)
        print(f"{file.stem}: {common['teacher']} {row['test_accuracy']} {row['files']}")

    def kept(name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The converted network in a file beside the teacher's; if there is none, it is written."""
        file = path.with_name(f"{label}-{name}.safetensors")
        if file.exists():
            return kanmeta.load(build(args.seed, data.shape), file)
        model = make()
        kanmeta.save(model, file)
        return model

    def from_scratch() -> tuple[nn.Module, dict[str, Any]]:
        def make() -> nn.Module:
            return train(converted(args.seed, data.shape), FROM_SCRATCH, data, args.seed)

        row = {"kind": "from scratch", "dim_z": 1, "data_used": "all, with labels"}
        return kept("scratch", make), row

    def distilled(dim_z: int, what: str, hidden: int) -> tuple[nn.Module, dict[str, Any]]:
        model = converted(args.seed, data.shape, dim_z=dim_z, hidden=hidden)
        steps: dict[str, Any] = {"fit_steps": FIT_STEPS, "layer_steps": LAYER_STEPS, "steps": STEPS}
        if what == "normal":  # made-up images have a shape already
            inner = model.get_submodule("net"), source.get_submodule("net")
            report = distil(*inner, data=what, **steps)
        else:
            report = distil(model, source, data=Shown(data, BATCH, args.seed), **steps)
        row = {"kind": "distilled", "dim_z": dim_z, "data_used": what, "hidden": hidden}
        return model, row | {"report": report.as_dict()}

    def trained_on() -> tuple[nn.Module, dict[str, Any]]:
        def student() -> nn.Module:
            return distilled(1, "training images", CONVERT["hidden"])[0]  # small in a file

        def make() -> nn.Module:
            return train(kept("student", student), TRAINED_ON, data, args.seed)

        row = {"kind": "distilled, trained on", "dim_z": 1, "data_used": "all, with labels"}
        return kept("tuned", make), row

    record("scratch", from_scratch, store=True)
    for dim_z, what in RUNS:
        make = functools.partial(distilled, dim_z, what, HIDDEN)
        record(f"z{dim_z}-{what.split()[0]}", make, store=False)
    record("tuned", trained_on, store=True)
    refresh(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.distill_conv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, metavar="N", help="so many images to train, to test")
    parser.add_argument("--data-root", type=Path, metavar="PATH", help="npz file or folder")
    parser.add_argument("--download", action="store_true", help="fetch the data set if needed")
    parser.add_argument("--out", type=Path, default=Path(), help="parent of results/ and runs/")
    args = parser.parse_args(argv)
    try:
        with one_thread():
            run(args)
    except DataError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
