"""Tensors that can be read like any other but refuse to be written to.

A generated coefficient tensor is made anew at every read, so a write to it would vanish without a
word: ``layer.coef.data.copy_(...)``, ``nn.init.zeros_(layer.coef)``, ``layer.coef[0] = 1``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from kanmeta.errors import CoefficientWriteError

__all__ = ["GeneratedTensor", "refusal"]

_SETTERS = {"__set__", "__setitem__", "__delete__"}


def refusal(what: str, name: str) -> str:
    """Return the text of every error about a write that would be lost."""
    return (
        f"{what} would be lost: {name!r} is generated from prompts by a meta-learner at every "
        "read. Train the prompts instead (kanmeta.prompts(model)), or call "
        "kanmeta.materialize(model) first: then it is a plain Parameter again, which can be "
        "written to, loaded into and converted anew."
    )


class GeneratedTensor(Tensor):
    """A coefficient tensor read outside the layer's forward.

    Results of operations on it are plain tensors; views of it, ``.data`` and ``.detach()`` share
    its memory and so stay guarded.
    """

    _name: str

    @staticmethod
    def wrap(tensor: Tensor, name: str) -> Tensor:
        """Guard ``tensor``; ``name`` is what error messages call it."""
        if torch.compiler.is_compiling():
            return tensor  # a traced read cannot write, and a subclass would break the graph
        guarded = tensor.as_subclass(GeneratedTensor)
        guarded.__dict__["_name"] = name
        return guarded

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` on plain tensors, unless it would write to a guarded one."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            written = _written(func, args, kwargs)
            if written is not None:
                name = getattr(func, "__name__", str(func))
                if name == "__set__":  # of Tensor.data, say
                    name = f".{getattr(func, '__self__', func).__name__} ="
                what = f"'{name}'"
                raise CoefficientWriteError(refusal(what, written.__dict__["_name"]))
            if func in (Tensor.__deepcopy__, Tensor.__reduce_ex__):  # copies are plain tensors
                return func(args[0].as_subclass(Tensor), *args[1:], **kwargs)
            result = func(*args, **kwargs)
            guarded = [a for a in (*args, *kwargs.values()) if isinstance(a, GeneratedTensor)]
            return _guard_views(result, guarded)


def _written(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> GeneratedTensor | None:
    """Return the guarded tensor that ``func`` would change, if there is one."""
    name = getattr(func, "__name__", "")
    # Setters of .data, .grad, .requires_grad; x += y and x[i] = y; methods and nn.init functions
    # end in one underscore by PyTorch's convention.
    in_place = (
        name in _SETTERS
        or (name.endswith("_") and not name.endswith("__"))
        or (name.startswith("__i") and name not in ("__index__", "__int__", "__invert__"))
    )
    targets: list[Any] = [kwargs.get("out")]
    if in_place or kwargs.get("inplace"):
        targets += [args[0]] if args else list(kwargs.values())
    for target in targets:
        for tensor in target if isinstance(target, list | tuple) else [target]:
            if isinstance(tensor, GeneratedTensor):
                return tensor
    return None


def _guard_views(result: Any, guarded: list[GeneratedTensor]) -> Any:
    if isinstance(result, tuple | list) and type(result) in (tuple, list):
        return type(result)(_guard_views(item, guarded) for item in result)
    if isinstance(result, Tensor) and not isinstance(result, GeneratedTensor):
        for source in guarded:
            if _same_storage(result, source):
                return GeneratedTensor.wrap(result, source.__dict__["_name"])
    elif type(result).__name__ == "ndarray" and type(result).__module__ == "numpy":
        result.flags.writeable = False  # x.numpy() shares memory too
    return result


def _same_storage(a: Tensor, b: Tensor) -> bool:
    try:
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0
    except (RuntimeError, NotImplementedError):  # fake, functorch and meta tensors have none
        return False
