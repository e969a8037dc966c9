"""MNIST and Fashion-MNIST as four tensors, read from the idx files they are published as.

An idx file: two zero bytes, one byte for the type of the numbers (8: unsigned bytes), one for the
number of axes, a big-endian 32-bit size for each axis, then the numbers, last axis fastest.
"""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["DATASETS", "DataError", "Images", "load_images", "read_idx"]

DATASETS = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST"}
"""Our names, and the names of torchvision's classes and folders."""

DEFAULT_ROOT = Path("runs/data")
DEBIAN = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
CLASSES = 10

_FILES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


class DataError(Exception):
    """Data that is missing, or that is not what its name says."""


@dataclass(frozen=True)
class Images:
    """Grey images of 28 x 28 pixels in ten classes.

    Attributes:
        name: a key of :data:`DATASETS`.
        folder: where the files were found.
        train_images, test_images: uint8, ``(N, 28, 28)``; 0 is the background.
        train_labels, test_labels: int64, ``(N,)``, 0 to 9.
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


def load_images(name: str, root: Path | str | None = None, download: bool = False) -> Images:
    """Find, read and check a data set.

    Args:
        name: a key of :data:`DATASETS`.
        root: folder in torchvision's layout, ``root/FashionMNIST/raw``, or the one with the idx
            files; default: :data:`DEFAULT_ROOT`. Debian's package is looked at next.
        download: whether torchvision may fetch it into ``root`` if it is nowhere.

    Raises:
        DataError: the data set is nowhere (the text says which commands get it), or a file is not
            what it should be.
    """
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    root = DEFAULT_ROOT if root is None else Path(root)
    folders = [root / DATASETS[name] / "raw", root, *([DEBIAN[name]] if name in DEBIAN else [])]
    folder = next((f for f in folders if any(_find(f, file) for file in _FILES)), None)
    if folder is None and download:
        _download(name, root)
        folder = folders[0]
    if folder is None:
        raise DataError(_how_to_get(name, root, folders))
    train_images, train_labels, test_images, test_labels = (
        read_idx(_require(folder, file)) for file in _FILES
    )
    _check(folder, "train", train_images, train_labels)
    _check(folder, "t10k", test_images, test_labels)
    return Images(name, folder, train_images, train_labels.long(), test_images, test_labels.long())


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
    if labels.max() >= CLASSES:
        raise DataError(f"{folder}: {part} labels go up to {int(labels.max())}, expected 0 to 9")


def _download(name: str, root: Path) -> None:
    from torchvision import datasets  # only here: its import takes a second

    getattr(datasets, DATASETS[name])(root, download=True)


def _how_to_get(name: str, root: Path, folders: list[Path]) -> str:
    ways = [
        f"--download fetches it with torchvision into {root}",
        "--data FOLDER names a folder that has it already",
    ]
    if name in DEBIAN:
        ways.append("apt-get install dataset-fashion-mnist is Debian's package of it")
    places, choices = ", ".join(map(str, folders)), "; ".join(ways)
    return f"no {name} in any of {places}. To get it: {choices}."
