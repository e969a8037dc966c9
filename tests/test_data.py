"""recipes.data: where images are looked for, and files that are not what they should be."""

import gzip
from pathlib import Path

import pytest
import torch

from recipes import data
from recipes.data import DataError, load_images, read_idx
from tests.small_images import digits, idx, write_cifar, write_data


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", ["FashionMNIST/raw", "fashion-mnist", ""])
def test_images_are_found_and_read(tmp_path: Path, layout: str, zipped: bool) -> None:
    write_data(tmp_path / layout, zipped=zipped)
    images = load_images("fashion-mnist", tmp_path)
    expected, labels = digits(96, 0)
    assert torch.equal(images.train_images, expected)
    assert images.train_images.dtype == torch.uint8
    assert torch.equal(images.train_labels, labels.long())
    assert images.train_labels.dtype == torch.int64
    assert images.test_images.shape == (40, 28, 28)
    assert images.folder == tmp_path / layout


def test_fingerprint_tells_data_sets_apart(tmp_path: Path) -> None:
    write_data(tmp_path / "a")
    write_data(tmp_path / "b")
    write_data(tmp_path / "c", test=41)
    a, b, c = (load_images("mnist", tmp_path / name).fingerprint() for name in "abc")
    assert a == b != c


def test_debians_package_comes_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "debian")
    monkeypatch.setitem(data.DEBIAN, "fashion-mnist", tmp_path / "debian")
    assert load_images("fashion-mnist", tmp_path).folder == tmp_path / "debian"
    write_data(tmp_path)
    assert load_images("fashion-mnist", tmp_path).folder == tmp_path
    with pytest.raises(DataError, match="no mnist in any of"):
        load_images("mnist", tmp_path / "empty")


def test_missing_data_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DEBIAN, "fashion-mnist", tmp_path / "debian")
    with pytest.raises(DataError) as error:
        load_images("fashion-mnist", tmp_path)
    for part in ("--download", "--data", "apt-get install dataset-fashion-mnist", str(tmp_path)):
        assert part in str(error.value)
    with pytest.raises(DataError, match="there are fashion-mnist, mnist"):
        load_images("cifar", tmp_path)


def test_download_is_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def fetch(root: Path, train: bool, download: bool) -> None:
        assert download
        write_data(root / "MNIST" / "raw")

    monkeypatch.setattr(datasets, "MNIST", fetch)
    assert load_images("mnist", tmp_path, download=True).folder == tmp_path / "MNIST" / "raw"


def test_several_places_are_searched(tmp_path: Path) -> None:
    write_data(tmp_path / "a" / "MNIST" / "raw")
    write_data(tmp_path / "b" / "FashionMNIST" / "raw")
    places = [tmp_path / "a", tmp_path / "b"]
    assert load_images("fashion-mnist", places).folder == tmp_path / "b" / "FashionMNIST" / "raw"
    assert load_images("mnist", places).folder == tmp_path / "a" / "MNIST" / "raw"


def test_an_npz_file_is_a_data_set(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10.npz")
    for root in (tmp_path, tmp_path / "cifar-10.npz"):
        images = load_images("cifar-10", root)
        assert images.train_images.shape == (96, 3, 32, 32)
        assert images.test_labels.shape == (40,)
        assert images.test_labels.dtype == torch.int64
    with pytest.raises(DataError, match="no svhn in any of"):
        load_images("svhn", tmp_path)
    with pytest.raises(DataError, match=r"images \[96, 3, 32, 32\] .* are not mnist"):
        load_images("mnist", tmp_path / "cifar-10.npz")
    (tmp_path / "svhn.npz").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="no npz file with x_train"):
        load_images("svhn", tmp_path)


def test_colour_sets_are_read_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    class Fake:
        """As torchvision's CIFAR10: colours last, labels a list."""

        def __init__(self, root: Path, train: bool, download: bool) -> None:
            if not (root / "here").exists():
                raise RuntimeError("Dataset not found or corrupted.")
            self.data = torch.zeros(5 if train else 3, 32, 32, 3, dtype=torch.uint8).numpy()
            self.targets = [1, 2, 3, 4, 5][: len(self.data)]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    with pytest.raises(DataError, match="--download"):
        load_images("cifar-10", tmp_path)
    (tmp_path / "here").touch()
    images = load_images("cifar-10", [tmp_path / "no", tmp_path])
    assert images.train_images.shape == (5, 3, 32, 32)
    assert images.test_labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\0\0\x0d\x01" + bytes(8), "not an idx file of unsigned bytes"),
        (b"\0\0\x08\x00", "not an idx file"),
        (b"\0\0\x08\x03" + bytes(8), "not an idx file"),
        (b"<!DOCTYPE html>", "not an idx file"),
        (
            idx(torch.zeros(3, 4, dtype=torch.uint8))[:-1],
            r"11 bytes .* expected 12 for",
        ),
        (idx(torch.zeros(3, 4, dtype=torch.uint8)) + b"x", "13 bytes after the header"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)


@pytest.mark.parametrize("cut", [None, -9])
def test_broken_gzip_files_are_refused(tmp_path: Path, cut: int | None) -> None:
    content = idx(torch.zeros(3, 4, dtype=torch.uint8))
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content)[:cut] if cut else content)
    with pytest.raises(DataError, match="fetch it again"):
        read_idx(path)


def test_images_and_labels_must_fit(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    good = path.read_bytes()
    path.write_bytes(idx(torch.zeros(39, dtype=torch.uint8)))
    with pytest.raises(DataError, match=r"\[40, 28, 28\] and labels \[39\]"):
        load_images("mnist", tmp_path)
    path.write_bytes(good[:-1] + b"\x0b")
    with pytest.raises(DataError, match="labels go up to 11"):
        load_images("mnist", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="no t10k-labels-idx1-ubyte"):
        load_images("mnist", tmp_path)
