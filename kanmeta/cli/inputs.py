"""Unlabelled inputs from a file, without pickle: .npy, .npz or .safetensors."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kanmeta.cli.targets import CommandError

__all__ = ["read_inputs", "read_labels"]


def read_inputs(path: Path, key: str | None = None) -> Tensor:
    """Return the array in ``path``, its first axis the rows; float64 becomes float32.

    Args:
        path: a ``.npy`` file, or ``.npz`` or ``.safetensors`` with named arrays.
        key: name of the array; None: the only one there is.

    Raises:
        CommandError: there is no such array, or it holds bytes.
        OSError: the file cannot be read.
    """
    arrays = _arrays(path)
    if key is None and len(arrays) != 1:
        raise CommandError(
            f"{path} holds {', '.join(arrays)}: say which with --key; for --test store it alone"
        )
    if key is not None and key not in arrays:
        raise CommandError(f"{path} has no {key!r}; it holds {', '.join(arrays)}")
    values = arrays[key if key is not None else next(iter(arrays))]
    if values.dtype in (torch.uint8, torch.bool) or values.dim() == 0:
        raise CommandError(
            f"{path} holds {values.dtype} of shape {(*values.shape,)}; expected rows of inputs as "
            "the model takes them: scale and normalise them as in training and store float32"
        )
    return values.float() if values.dtype == torch.float64 else values


def read_labels(path: Path, rows: int) -> Tensor:
    """Return the only array in ``path``, the class of each of so many rows, as int64.

    Raises:
        CommandError: it is no such array.
        OSError: the file cannot be read.
    """
    arrays = list(_arrays(path).values())
    if not rows or len(arrays) != 1 or arrays[0].shape != (rows,) or arrays[0].is_floating_point():
        shapes = ", ".join(f"{a.dtype} of shape {(*a.shape,)}" for a in arrays)
        raise CommandError(
            f"{path} holds {shapes}; expected {rows} integers, a class for each row of "
            "the inputs. Store these alone"
        )
    return arrays[0].long()


def _arrays(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise CommandError(f"{path}: expected a .npy, .npz or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"the array": torch.from_numpy(stored)}
        with stored:
            return {name: torch.from_numpy(stored[name]) for name in stored.files}
    except (ValueError, TypeError, SafetensorError) as error:
        raise CommandError(f"{path} cannot be read as arrays of numbers: {error}") from error
