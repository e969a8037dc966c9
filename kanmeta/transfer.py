"""Teacher and student as whole models: do they fit, what is copied, how a failure is undone."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kanmeta.binding import Binding
from kanmeta.converted import ConvertedLayer
from kanmeta.errors import ModelMismatchError
from kanmeta.spec import ADDED, tensor_at
from kanmeta.surgery import bindings, is_converted, uninstall

__all__ = [
    "check_teacher",
    "copy_plain",
    "learnt",
    "plain_teacher",
    "put_all",
    "put_back",
    "put_back_on_failure",
]


def plain_teacher(teacher: nn.Module) -> nn.Module:
    """Return the teacher itself, or an unconverted copy of one that is converted."""
    if not is_converted(teacher):
        return teacher
    teacher = copy.deepcopy(teacher)
    uninstall(teacher)
    return teacher


def learnt(layers: Mapping[str, Binding]) -> list[Tensor]:
    """Prompts and meta-learners' parameters, each once."""
    every = [b.prompts for b in layers.values()]
    every += [p for b in layers.values() for p in b.meta_learner.parameters()]
    return list(dict.fromkeys(every))


def check_teacher(student: nn.Module, teacher: nn.Module, layers: Mapping[str, Binding]) -> None:
    """Raise ModelMismatchError, listing all differences, if the teacher is no such model."""
    modules = dict(teacher.named_modules(remove_duplicate=False))
    problems: list[str] = []
    for name, binding in layers.items():
        label, kind = name or "(root)", type(binding.layer)._original  # type: ignore[attr-defined]
        layer = modules.get(name)
        if layer is None or type(layer).__name__ != kind.__name__:
            found = "no such module" if layer is None else f"a {type(layer).__name__}"
            problems.append(f"{label}: expected a {kind.__name__}, found {found}")
            continue
        for path, shape in binding.spec.shapes.items():
            try:
                theirs: object = tuple(tensor_at(layer, path).shape)
            except (AttributeError, AssertionError):
                theirs = "nothing"
            if theirs != shape:
                problems.append(f"{binding.label(path)}: expected {shape}, found {theirs}")
    if not problems:
        have = _shapes(teacher.state_dict())
        want = _shapes({n: t for n, t in student.state_dict().items() if not _is_ours(student, n)})
        problems = [
            f"{name}: expected {shape}, found {have.get(name, 'nothing')}"
            for name, shape in want.items()
            if have.get(name) != shape
        ]
    if problems:
        raise ModelMismatchError(
            "the teacher is not a model of the student's architecture:\n" + "\n".join(problems)
        )


@torch.no_grad()
def copy_plain(student: nn.Module, teacher: nn.Module, layers: Mapping[str, Binding]) -> None:
    """Give the student the teacher's tensors that the conversion left plain: biases, norms, grids.

    The coefficients belong to the teacher's grid: the maps of earlier grid updates are dropped.
    """
    theirs = teacher.state_dict(keep_vars=True)
    for name, tensor in student.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and not _is_ours(student, name):
            tensor.copy_(theirs[name])
    for name, binding in layers.items():
        binding.map = None
        for attribute, value in vars(teacher.get_submodule(name)).items():
            mine = vars(binding.layer).get(attribute)
            if isinstance(value, Tensor) and isinstance(mine, Tensor):  # a grid that is no buffer
                vars(binding.layer)[attribute] = value.detach().clone().to(mine)


@contextmanager
def put_back_on_failure(student: nn.Module) -> Iterator[None]:
    """After an error every tensor of the student is as it was; an interruption is no error."""
    tensors = [*student.parameters(), *student.buffers()]
    before = [(t, t.detach().clone()) for t in tensors]
    maps = [(binding, binding.map) for _, binding in bindings(student)]
    attributes = [
        (binding.layer, {k: v for k, v in vars(binding.layer).items() if isinstance(v, Tensor)})
        for _, binding in bindings(student)
    ]
    try:
        yield
    except Exception:
        for layer, values in attributes:
            vars(layer).update(values)
        for binding, value in maps:
            binding.map = value
        put_back(before)
        raise


@torch.no_grad()
def put_back(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each value into its tensor."""
    for tensor, value in values:
        tensor.copy_(value)


def put_all(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each value into its tensor, or after an interruption none."""
    before = [(tensor, tensor.detach().clone()) for tensor, _ in values]
    try:
        put_back(values)
    except BaseException:
        put_back(before)
        raise


def _is_ours(model: nn.Module, name: str) -> bool:
    """Whether the tensor ``name`` of a state_dict belongs to the conversion."""
    owner, _, attribute = name.rpartition(".")
    if owner.rpartition(".")[2] == "meta_learner":
        owner, attribute = owner.rpartition(".")[0], "meta_learner"
    return attribute in ADDED and isinstance(model.get_submodule(owner), ConvertedLayer)


def _shapes(state: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in state.items() if isinstance(t, Tensor)}
