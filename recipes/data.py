"""Image data sets as four tensors: idx files, torchvision's folders, or one npz file.

MNIST, Fashion-MNIST and KMNIST are read from the idx files they are published as, the colour sets
by torchvision's own classes. An npz file has x_train, y_train, x_test and y_test (Keras' names),
colours last; it may hold a part of a data set.

An idx file: two zero bytes, one byte for the type of the numbers (8: unsigned bytes), one for the
number of axes, a big-endian 32-bit size for each axis, then the numbers, last axis fastest.
"""

import gzip
import hashlib
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["CLASSES", "COLOUR", "DATASETS", "DataError", "Images", "load_images", "read_idx"]

DATASETS = {
    "fashion-mnist": "FashionMNIST",
    "mnist": "MNIST",
    "kmnist": "KMNIST",
    "svhn": "SVHN",
    "cifar-10": "CIFAR10",
    "cifar-100": "CIFAR100",
}
"""Our names, and the names of torchvision's classes and folders."""

CLASSES = {name: 100 if name == "cifar-100" else 10 for name in DATASETS}
COLOUR = {"svhn", "cifar-10", "cifar-100"}
"""Those of 32 x 32 pixels in three colours; the others have 28 x 28 grey ones."""

DEFAULT_ROOT = Path("runs/data")
DEBIAN = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
_FILES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


class DataError(Exception):
    """Data that is missing, or that is not what its name says."""


@dataclass(frozen=True)
class Images:
    """Images of one size with a class each.

    Attributes:
        name: a key of :data:`DATASETS`.
        folder: where the files were found.
        train_images, test_images: uint8, ``(N, 28, 28)``, or ``(N, 3, 32, 32)`` in colour.
        train_labels, test_labels: int64, ``(N,)``, from 0.
    """

    name: str
    folder: Path
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of all numbers; tells data sets apart."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(tensor.numpy().data)
        return digest.hexdigest()[:16]


def load_images(
    name: str, root: Path | str | Sequence[Path | str] | None = None, download: bool = False
) -> Images:
    """Find, read and check a data set.

    Args:
        name: a key of :data:`DATASETS`.
        root: one place or several: a folder in torchvision's layout, such as
            ``root/FashionMNIST/raw``, or with ``root/<name>``, the one with the idx files, an npz
            file, or a folder with ``<name>.npz``; default: :data:`DEFAULT_ROOT`. Debian's package
            is looked at last.
        download: whether torchvision may fetch it into the first ``root`` if it is nowhere.

    Raises:
        DataError: the data set is nowhere (the text says which commands get it), or a file is not
            what it should be.
    """
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    several = [root] if isinstance(root, (str, Path)) else list(root or [DEFAULT_ROOT])
    roots = [Path(one) for one in several]
    for place in roots:
        archive = place if place.suffix == ".npz" else place / f"{name}.npz"
        if archive.is_file():
            return _from_npz(name, archive)
    return (_colour if name in COLOUR else _grey)(name, roots, download)


def _grey(name: str, roots: list[Path], download: bool) -> Images:
    folders = [f for root in roots for f in (root / DATASETS[name] / "raw", root / name, root)]
    folders += [DEBIAN[name]] if name in DEBIAN else []
    folder = next((f for f in folders if any(_find(f, file) for file in _FILES)), None)
    if folder is None and download:
        _torchvision(name, roots[0], download=True)
        folder = folders[0]
    if folder is None:
        raise DataError(_how_to_get(name, roots[0], folders))
    train_images, train_labels, test_images, test_labels = (
        read_idx(_require(folder, file)) for file in _FILES
    )
    _check(folder, "train", train_images, train_labels)
    _check(folder, "t10k", test_images, test_labels)
    return Images(name, folder, train_images, train_labels.long(), test_images, test_labels.long())


def _colour(name: str, roots: list[Path], download: bool) -> Images:
    for root in roots:
        try:
            train, test = _torchvision(name, root, download=download and root == roots[0])
        except RuntimeError:  # what torchvision raises where the files are missing or broken
            continue
        return Images(name, root, *_tensors(train), *_tensors(test))
    raise DataError(_how_to_get(name, roots[0], roots))


def _tensors(part: Any) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(part.data)
    if images.shape[-1] == 3:  # CIFAR has the colours last, SVHN first
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = part.targets if hasattr(part, "targets") else part.labels
    return images, torch.as_tensor(labels).long()


def _from_npz(name: str, path: Path) -> Images:
    parts = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[part] for part in parts]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no npz file with {', '.join(parts)} ({error})") from error
    found = [torch.from_numpy(array) for array in arrays]
    for place in (0, 2):
        if found[place].dim() == 4:
            found[place] = found[place].permute(0, 3, 1, 2).contiguous()
    expected = (3, 32, 32) if name in COLOUR else (28, 28)
    for images, labels in (found[:2], found[2:]):
        if images.shape[1:] != expected or labels.numel() != len(images) or not len(images):
            raise DataError(
                f"{path}: images {list(images.shape)} and labels {list(labels.shape)} are not "
                f"{name}, which has images of {list(expected)}"
            )
        if labels.max() >= CLASSES[name]:
            raise DataError(f"{path}: labels go up to {int(labels.max())}: this is not {name}")
    x, y, x_test, y_test = found
    return Images(name, path, x, y.flatten().long(), x_test, y_test.flatten().long())


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped if its name ends in ``.gz``: uint8, any shape.

    Raises:
        DataError: it is no such file, or it is truncated or too long.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from error
    magic, axes = raw[:3], raw[3] if len(raw) > 3 else 0
    start = 4 + 4 * axes
    if magic != b"\0\0\x08" or axes == 0 or len(raw) < start:
        raise DataError(
            f"{path}: starts with {raw[:4].hex(' ') or 'nothing'}, expected 00 00 08 and the "
            "number of axes: not an idx file of unsigned bytes"
        )
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    if len(raw) - start != math.prod(shape):
        raise DataError(
            f"{path}: {len(raw) - start} bytes after the header, expected {math.prod(shape)} for "
            f"shape {shape}; fetch it again"
        )
    return torch.frombuffer(bytearray(raw[start:]), dtype=torch.uint8).reshape(shape)


def _find(folder: Path, file: str) -> Path | None:
    paths = (folder / f"{file}-ubyte", folder / f"{file}-ubyte.gz")
    return next((path for path in paths if path.is_file()), None)


def _require(folder: Path, file: str) -> Path:
    path = _find(folder, file)
    if path is None:
        raise DataError(f"{folder} holds other files of the data set, but no {file}-ubyte[.gz]")
    return path


def _check(folder: Path, part: str, images: Tensor, labels: Tensor) -> None:
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or not len(images):
        raise DataError(
            f"{folder}: {part} images have shape {list(images.shape)} and labels "
            f"{list(labels.shape)}, expected [N, 28, 28] and [N]"
        )
    if labels.max() > 9:
        raise DataError(f"{folder}: {part} labels go up to {int(labels.max())}, expected 0 to 9")


def _torchvision(name: str, root: Path, download: bool) -> tuple[Any, Any]:
    from torchvision import datasets  # only here: its import takes a second

    cls = getattr(datasets, DATASETS[name])
    if name == "svhn":
        return cls(root, split="train", download=download), cls(root, "test", download=download)
    return cls(root, train=True, download=download), cls(root, train=False, download=download)


def _how_to_get(name: str, root: Path, places: list[Path]) -> str:
    ways = [
        f"--download fetches it with torchvision into {root}",
        "--data-root PATH names a folder or npz file that has it already",
    ]
    if name in DEBIAN:
        ways.append("apt-get install dataset-fashion-mnist is Debian's package of it")
    looked, choices = ", ".join(map(str, places)), "; ".join(ways)
    return f"no {name} in any of {looked}. To get it: {choices}."
