"""What a command works on: a model made by an importable function, and a file with its weights."""

import ast
import importlib
import json
import os
import pickle
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kanmeta.errors import KanMetaError

__all__ = [
    "CommandError",
    "build",
    "foreign",
    "give_weights",
    "is_file",
    "read_tensors",
    "seeded_model",
]

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put a state_dict beside other things."""


class CommandError(KanMetaError, ValueError):
    """An argument of a command does not lead to a model, a file or data."""


@contextmanager
def foreign(doing: str) -> Iterator[None]:
    """Turn whatever code that is not ours raises into a message that says where."""
    try:
        yield
    except (KanMetaError, KeyboardInterrupt):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if frame.filename == __file__ else f" ({frame.filename}:{frame.lineno})"
        raise CommandError(f"{doing} failed with {type(error).__name__}: {error}{place}") from error


def is_file(target: str) -> bool:
    """Whether ``target`` names a file rather than ``module:function``."""
    return Path(target).suffix in (".safetensors", *_PICKLES) or Path(target).is_file()


def build(target: str, arguments: str | None) -> nn.Module:
    """Make the model that ``module:function`` describes.

    Args:
        target: ``"module:name"`` or ``"module:name(literals)"``. The name may be dotted, and stand
            for a model, or for a class or function that makes one. The current folder can be
            imported from, as with ``python -m``.
        arguments: JSON: a list of positional arguments or an object of keyword arguments.

    Raises:
        CommandError: it does not; the message says which part.
    """
    module, colon, call = target.partition(":")
    if not colon or not module or not call:
        raise CommandError(
            f"{target!r} is neither a file nor module:function. Expected for example "
            "kan:KAN, with --args '[[4, 8, 1]]', or 'kan:KAN([4, 8, 1], grid=5)'"
        )
    name, positional, keywords = _call(target, call)
    if arguments is not None:
        more = _json(arguments)
        positional, keywords = (
            (positional, keywords | more)
            if isinstance(more, dict)
            else ([*positional, *more], keywords)
        )
    made = _attribute(module, name)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise CommandError(
                f"{module}:{name} is a {type(made).__name__}; expected a class or a function that "
                "returns a torch.nn.Module"
            )
        with foreign(f"calling {module}:{name}"):
            made = made(*positional, **keywords)
    elif positional or keywords:
        raise CommandError(f"{module}:{name} is a model already; leave its arguments out")
    if not isinstance(made, nn.Module):
        raise CommandError(
            f"{module}:{name} returned a {type(made).__name__}; expected a torch.nn.Module"
        )
    return made


def _call(target: str, text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Cut ``name(literals)`` into name and arguments; nothing is evaluated."""
    try:
        node = ast.parse(text, mode="eval").body
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        if isinstance(node, ast.Call):
            positional = [ast.literal_eval(a) for a in node.args]
            keywords = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            if "None" in keywords:  # **{...}
                raise ValueError(text)
            node = node.func
        name = ast.unparse(node)
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(name)
    except (SyntaxError, ValueError, TypeError) as error:
        raise CommandError(
            f"{target!r}: expected module:name or module:name(arguments), where arguments are "
            "numbers, texts, True, False, None and lists of them. Other arguments need a function "
            "of your own that makes the model"
        ) from error
    return name, positional, keywords


def _json(text: str) -> list[Any] | dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandError(f"--args {text!r} is no JSON: {error}") from error
    if not isinstance(value, list | dict):
        raise CommandError(
            f"--args {text!r}: expected a list of arguments, '[[4, 8, 1]]', or an object of named "
            """ones, '{"width": [4, 8, 1]}'"""
        )
    return value


def _attribute(module: str, name: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with foreign(f"importing {module}"):
            found: Any = importlib.import_module(module)
    except CommandError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise CommandError(
                f"cannot import {module!r}: there is no module {error.__cause__.name!r} among the "
                f"installed packages, in {folder} or on PYTHONPATH"
            ) from error
        raise
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandError(f"module {module!r} has no {name!r}")
        found = getattr(found, part)
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a ``state_dict``: safetensors, or what ``torch.load(weights_only=True)`` accepts.

    Raises:
        CommandError: the file is damaged or holds something else.
        OSError: it cannot be read.
    """
    with path.open("rb"):  # one kind of error for both readers
        pass
    try:
        found: Any
        if path.suffix in _PICKLES:
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = load_file(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CommandError(
            f"{path} cannot be read as tensors ({type(error).__name__}). Expected a safetensors "
            f"file, or with one of the endings {', '.join(_PICKLES)} one that torch.save made of "
            "model.state_dict(); a whole pickled model is refused, as opening it would run its code"
        ) from error
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(map(_is_tensor, found.values())):
        keys = [*map(str, found)][:5] if isinstance(found, Mapping) else []
        raise CommandError(
            f"{path} holds no state_dict: expected name -> tensor, found a {type(found).__name__}"
            f"{' with ' if keys else ''}{', '.join(keys)}"
        )
    return dict(found)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def give_weights(model: nn.Module, path: Path) -> None:
    """Load the ``state_dict`` in ``path`` into ``model``.

    Raises:
        CommandError: names or shapes differ; the message lists them as torch does.
    """
    tensors = read_tensors(path)
    with foreign(f"loading {path} into the model"):
        model.load_state_dict(tensors)


def seeded_model(target: str, arguments: str | None, weights: Path | None, seed: int) -> nn.Module:
    """Make the model of :func:`build` with first values of ``seed``, and give it ``weights``.

    Raises:
        CommandError: ``target`` is a file, or as of :func:`build` and :func:`give_weights`.
    """
    if is_file(target):
        raise CommandError(
            f"{target} is a file; expected module:function, which makes the model. A file of "
            "weights goes to --weights"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build(target, arguments)
    if weights is not None:
        give_weights(model, weights)
    return model
