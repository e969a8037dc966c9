"""Small instances of real models from the repositories of KAN libraries and of people who use them.

``KANMETA_UPSTREAM`` names a folder with a checkout of each repository, see ``tests/upstream.py``;
a repository that is missing there skips its models.
"""

import contextlib
import fnmatch
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from tests import upstream

REPOSITORIES = {
    "BSRBF_KAN": "hoangthangta/BSRBF_KAN",
    "Convolutional-KANs": "AntonioTepsich/Convolutional-KANs",
    "FCN-KAN": "Zhangyanbo/FCN-KAN",
    "KA-Conv": "XiangboGaoBarry/KA-Conv",
    "KAN-AutoEncoder": "SekiroRong/KAN-AutoEncoder",
    "KANConv2d": "SeriYann/KANConv2d",
    "KanLightning": "gjyotin305/KanLightning",
    "LKAN": "Indoxer/LKAN",
    "U-KAN": "CUHK-AIM-Group/U-KAN",
    "Vision-KAN": "chenziwenhaoshuai/Vision-KAN",
    "Wav-KAN": "zavareh1/Wav-KAN",
    "X-KANeRF": "lif314/X-KANeRF",
    "convkan": "StarostinV/convkan",
    "efficient-kan": "Blealtan/efficient-kan",
    "fast-kan": "ZiyaoLi/fast-kan",
    "kan-gpt": "AdityaNG/kan-gpt",
    "kansformers": "akaashdash/kansformers",
    "torch-conv-kan": "IvanDrokin/torch-conv-kan",
}
"""Folder under ``KANMETA_UPSTREAM`` -> repository on GitHub."""

IN_ORDER = "registration order"
"""Where the order comes from if tracing stops at control flow that depends on data or shapes."""


@dataclass(frozen=True)
class Model:
    """A real model, and what kanmeta must find in it.

    Attributes:
        name: repository's name for it, and the options taken.
        repository: one of REPOSITORIES; empty for an installed package.
        make: builds it.
        inputs: positional arguments of its forward.
        layers: how many layers are converted.
        skipped: how many look like a KAN's and are left alone with a warning; ``why`` says why.
        order: where the order of the layers comes from.
        edge, adapters: as in ``convert``.
        idle: patterns of names of layers whose prompts may get no gradient in a step.
        copies: whether the model can be deep-copied after a training step, as the library made it.
        why: what is odd.
    """

    name: str
    repository: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    layers: int
    skipped: int = 0
    order: str = "traced"
    edge: str = "tap"
    adapters: Sequence[kanmeta.Adapter] = ()
    idle: tuple[str, ...] = ()
    copies: bool = True
    why: str = ""

    def build(self) -> nn.Module:
        """Build the model; skips the test where the repository is not at hand."""
        if self.repository:
            checkout(self.repository)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # theirs
            return self.make()

    def run(self, model: nn.Module) -> Any:
        """Run it on inputs that are always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            inputs = self.inputs()
        return model(*inputs)

    def is_idle(self, layer: str) -> bool:
        """Whether a layer may get no gradient."""
        return any(fnmatch.fnmatchcase(layer, pattern) for pattern in self.idle)


def tensors(output: Any) -> Iterator[Tensor]:
    """Every floating-point tensor of a model's output."""
    if isinstance(output, Tensor):
        yield from [output] if output.is_floating_point() else []
    elif isinstance(output, dict):
        yield from tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from tensors(part)


def images(channels: int = 3, size: int = 32, n: int = 2) -> Callable[[], tuple[Tensor]]:
    """Images with values between -1 and 1."""
    return lambda: (torch.rand(n, channels, size, size) * 2 - 1,)


def vectors(features: int, n: int = 8) -> Callable[[], tuple[Tensor]]:
    """Vectors with values between -1 and 1."""
    return lambda: (torch.rand(n, features) * 2 - 1,)


def checkout(repository: str) -> Path:
    """Folder of a checkout; skips the test where it is not at hand."""
    if not upstream.AVAILABLE:
        pytest.skip(upstream.HOW)
    folder = Path(str(upstream.FOLDER)).absolute() / repository
    if not folder.exists():
        url = f"github.com/{REPOSITORIES[repository]}"
        pytest.skip(f"no {repository} (a checkout of {url}) in KANMETA_UPSTREAM")
    return folder


@cache
def imported(repository: str, module: str, *below: str) -> ModuleType:
    """Import a module of a checkout on its own.

    The repositories call their modules ``utils``, ``kan`` and ``models``, all at the top level, so
    each is imported while the others' are out of sight.

    Args:
        repository: folder of the checkout.
        module: name of the module.
        below: folders in the checkout to look in; default: the checkout itself.
    """
    folders = [checkout(repository) / part for part in below or ("",)]
    files = [path for folder in folders for path in folder.iterdir()]
    own = {path.stem for path in files if path.suffix == ".py" or path.is_dir()}
    hidden = _taken_out(own)
    before = [*sys.path]
    sys.path[:0] = map(str, folders)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they import what timm has moved
            return importlib.import_module(module)
    finally:
        sys.path[:] = before
        _taken_out(own)
        sys.modules.update(hidden)


def _taken_out(names: set[str]) -> dict[str, ModuleType]:
    """Take the top-level modules of these names, and those below them, out of sys.modules."""
    return {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] in names}
