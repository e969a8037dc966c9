"""A trained 4-layer KANConv network on CIFAR-10, distilled to one number a kernel tap, and stored.

    python -m recipes.distill_conv --data-root cifar10.npz --seed 0

Trains the network first, with shifted and mirrored images. Its training images as they are, without
labels, are then the data: layers are matched, then outputs with codes of few bits. Writes a JSON
file under ``results/distill/``, and the tables there: :mod:`recipes.distill_table`.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import kanmeta
from recipes.data import DataError, load_images
from recipes.distill_table import refresh
from recipes.images_conv import augmentation
from recipes.images_run import Shaped
from recipes.records import code_state, hardware, versions, write_json
from recipes.reference.conv_kan import KANConv2DLayer
from recipes.reference.conv_net import ConvNet
from recipes.training import Pixels, accuracy, one_thread, train_epoch

__all__ = ["main"]

CHANNELS, STRIDES = (16, 32, 64, 64), (2, 2, 2, 1)  # a quarter of those of images_conv at the end
EPOCHS, BATCH, RATE = 6, 64, 2e-3
CONVERT: dict[str, Any] = {"clusters": "layer", "dim_z": 1, "hidden": 16}
FIT_STEPS, LAYER_STEPS, STEPS = 200, 150, 300
BITS = 3.17  # 9 numbers a codebook, in a file of 4 bits


def build(seed: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network, which takes flat images, with its first values."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = ConvNet(KANConv2DLayer, shape[0], 10, CHANNELS, STRIDES, norm_layer=nn.BatchNorm2d)
    return Shaped(net, shape)


def trained(path: Path, data: Pixels, seed: int) -> nn.Module:
    """The network in ``path``, which is trained and written first if there is none."""
    model = build(seed, data.shape)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    augment = augmentation(data)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for epoch in range(EPOCHS):
            train_epoch(
                model, data, optimizer, epoch=epoch, epochs=EPOCHS, batch=BATCH, seed=seed,
                augment=augment,
            )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model


def run(args: argparse.Namespace) -> None:
    """One seed."""
    images = load_images("cifar-10", (args.data_root,) if args.data_root else (), args.download)
    data = Pixels.of(images, limit=args.limit)
    begin = time.perf_counter()
    path = args.out / "runs" / "distill" / f"cifar-10-kanconv-s{args.seed}.safetensors"
    teacher = trained(path, data, args.seed)
    pool = data.inputs(slice(0, data.train))

    def distill(student: nn.Module, **options: Any) -> kanmeta.DistillReport:
        generator = torch.Generator().manual_seed(args.seed)
        return kanmeta.distill(
            student, teacher, data=pool, batch_size=BATCH, generator=generator, **options
        )

    student = kanmeta.convert(
        build(args.seed, data.shape), **CONVERT, generator=torch.Generator().manual_seed(args.seed)
    )
    report = distill(student, fit_steps=FIT_STEPS, layer_steps=LAYER_STEPS, steps=0)
    small = copy.deepcopy(student)
    distill(small, from_student=True, prompt_bits=BITS, steps=STEPS)
    to = path.with_name(f"cifar-10-kanconv-s{args.seed}-compact.safetensors")
    kanmeta.save(small, to, prompt_bits=4, dtype=torch.float16)
    fresh = kanmeta.load(build(args.seed, data.shape), to)
    size, reached = to.stat().st_size, accuracy(fresh, data)
    file = {"bits": BITS, "tuned_bytes": size, "tuned_accuracy": reached}
    result = {
        "dataset": "cifar-10",
        "network": "KANConv x 4",
        "data": images.fingerprint(),
        "images": data.train,
        "seed": args.seed,
        "teacher": {"test_accuracy": accuracy(teacher, data), "bytes": path.stat().st_size},
        "widths": CHANNELS,
        "test_accuracy": accuracy(student, data),
        "report": report.as_dict(),
        "dim_z": CONVERT["dim_z"],
        "data_used": "training images",
        "files": [file],
        "kind": "distilled",
        "seconds": round(time.perf_counter() - begin, 1),
        "code": code_state(),
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    folder = args.out / "results" / "distill"
    write_json(folder / f"cifar-10-kanconv-s{args.seed}.json", result)
    refresh(folder)
    print(result["teacher"], result["test_accuracy"], file)


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
