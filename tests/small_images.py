"""A data set small enough to be written by a test, in the files that MNIST comes in."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def idx(tensor: Tensor) -> bytes:
    """The idx file of a uint8 tensor."""
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return b"\0\0\x08" + bytes([tensor.dim()]) + sizes + tensor.numpy().tobytes()


def digits(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``n`` images whose class can be told: a bright bar whose height is the label, on noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (n,), generator=generator, dtype=torch.uint8)
    images = torch.randint(0, 60, (n, 28, 28), generator=generator, dtype=torch.uint8)
    rows = torch.arange(28).view(1, 28, 1)
    bar = (rows // 2 == labels.view(-1, 1, 1) + 2).expand(n, 28, 28)
    return torch.where(bar, 250, images.int()).to(torch.uint8), labels


def write_data(folder: Path, *, zipped: bool = False, train: int = 96, test: int = 40) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, n, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = digits(n, seed)
        for kind, tensor in (("images-idx3", images), ("labels-idx1", labels)):
            content, name = idx(tensor), f"{part}-{kind}-ubyte"
            if zipped:
                content, name = gzip.compress(content, 1), f"{name}.gz"
            (folder / name).write_bytes(content)


def write_cifar(path: Path, train: int = 96, test: int = 40) -> None:
    """An npz file of colour images, 32 x 32, as Keras names its parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part, n, seed in (("train", train, 2), ("test", test, 3)):
        images, labels = digits(n, seed)
        grey = torch.nn.functional.pad(images, [2] * 4)
        parts[f"x_{part}"] = torch.stack([grey, grey.flip(0), 255 - grey], -1).numpy()
        parts[f"y_{part}"] = labels.numpy()
    np.savez(path, **parts)
