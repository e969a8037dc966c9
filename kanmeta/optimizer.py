"""An optimiser's state across a conversion in the middle of training."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from kanmeta.errors import PlanError

__all__ = ["CarriedOptimizer", "carry_optimizer"]


@dataclass
class CarriedOptimizer:
    """What became of an optimiser's Parameters, by their names in the model.

    Attributes:
        kept: they are still there, with their state, in the group where they were.
        reset: they are new and start without state.
        dropped: they are gone, and their state with them.
        left_out: they are new and this optimiser does not train them, because it did not train
            those that they stand for either, because another optimiser that is carried at the
            same time does, or because it is Muon.
    """

    kept: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line of each kind, for ``print``."""
        kinds = ("kept", "reset", "dropped", "left_out")
        lines = [f"{k}: {', '.join(getattr(self, k))}" for k in kinds if getattr(self, k)]
        return "\n".join(lines) or "kept: nothing"


@contextmanager
def carry_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> Iterator[CarriedOptimizer]:
    """Let an optimiser follow a model through ``convert``, ``materialize`` or ``load``.

    >>> model = torch.nn.Sequential(KAN([64, 32]), torch.nn.Linear(32, 10))
    >>> optimiser = torch.optim.Adam(model.parameters())
    >>> with kanmeta.carry_optimizer(optimiser, model) as carried:
    ...     model = kanmeta.convert(model)                 # with distill= to keep what it learnt
    >>> carried.kept, carried.reset[0]
    (('1.weight', '1.bias'), '0.layers.0.prompts')

    Parameters that are still there afterwards keep their state exactly (Adam's moments and step,
    SGD's momentum). Those that are gone leave the optimiser. New ones, prompts and meta-learners
    or the library's own after ``materialize``, start without state in the group of those that
    they stand for: its learning rate and all other options hold for them. There are as many
    groups as before, so that a learning rate scheduler goes on.

    Optimisers that share a model are carried at the same time, ``with carry_optimizer(a, model),
    carry_optimizer(b, model):``. Each new Parameter then goes to one of them: where they had
    split the tensors of a layer, to the one that trained the first of those that are gone.

    Muon trains matrices only, so prompts and meta-learners are left to another optimiser that is
    carried, and a warning names those that none takes.

    Args:
        optimizer: changed in place when the block ends, also if it ends by an error.
        model: the model that it trains, not wrapped.

    Returns:
        A context; what it gives is filled when the block ends.

    Raises:
        PlanError: the optimiser keeps a state that does not belong to single Parameters (LBFGS)
            or makes it when it is built (Adagrad).
    """
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.Adagrad):
        raise PlanError(
            f"the state of {type(optimizer).__name__} cannot follow a model whose Parameters "
            "change; make a new optimiser afterwards: kanmeta.param_groups(model, lr=...)"
        )
    before = dict(model.named_parameters())
    own, carried = _Part(optimizer), CarriedOptimizer()
    for other in _carried_now:
        other.others.append(own)
    own.others.extend(_carried_now)
    _carried_now.append(own)
    try:
        yield carried
    finally:
        _carried_now.remove(own)
        after = dict(model.named_parameters())
        _follow(own, before, after, carried)
        if set(after.values()) == set(before.values()):  # what changes later is for the others
            for other in _carried_now:
                other.others.remove(own)
        own.others.clear()  # a cycle would keep the old Parameters alive


_MUON = {"Muon", "SingleDeviceMuon"}


class _Part:
    """An optimiser that is carried, and those that are at the same time.

    Attributes:
        optimizer: it.
        trained: by it, when the block began.
        others: which tell by what they trained whether they are of the same model.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.trained = {p for group in optimizer.param_groups for p in group["params"]}
        self.others: list[_Part] = []
        # By name, and what is made of it: torch has one since 2.9, others had theirs before.
        self.matrices_only = any(c.__name__ in _MUON for c in type(optimizer).__mro__)

    def takes(self, name: str, p: nn.Parameter) -> bool:
        """Whether it can train the new Parameter ``name``."""
        return not self.matrices_only or (p.ndim == 2 and ".meta_learner." not in f".{name}")


_carried_now: list[_Part] = []


def _follow(
    own: _Part,
    before: dict[str, nn.Parameter],
    after: dict[str, nn.Parameter],
    carried: CarriedOptimizer,
) -> None:
    """Change the groups and say in ``carried`` what was done."""
    optimizer = own.optimizer
    group_of = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    old, present = set(before.values()), set(after.values())
    gone = {name: p for name, p in before.items() if p not in present}
    trained = [name for name, p in before.items() if p in group_of]
    joining: dict[int, list[str]] = {}
    reset, left_out, refused = [], [], list[str]()
    for name, p in after.items():
        if p in old or p in group_of or not p.requires_grad:  # or the user has added it
            continue
        takers = [part for part in (own, *own.others) if part.takes(name, p)]
        taken = [n for n, q in gone.items() if any(q in part.trained for part in takers)]
        source = _stands_for(name, [*gone], taken)
        if source is not None and own in takers and gone[source] in group_of:
            joining.setdefault(group_of[gone[source]], []).append(name)
            reset.append(name)
        elif source is None and _stands_for(name, [*gone], trained) is not None:
            refused.append(name)
        else:
            left_out.append(name)
    lost = set(gone.values())
    for i, group in enumerate(optimizer.param_groups):
        new, stays = joining.get(i, []), [p not in lost for p in group["params"]]
        if "param_names" in group:
            group["param_names"] = [*itertools.compress(group["param_names"], stays), *new]
        group["params"] = [*itertools.compress(group["params"], stays), *(after[n] for n in new)]
    for p in lost:
        optimizer.state.pop(p, None)
    carried.kept = tuple(name for name in trained if name not in gone)
    carried.dropped = tuple(name for name in trained if name in gone)
    carried.reset, carried.left_out = tuple(reset), (*left_out, *refused)
    if refused:
        warnings.warn(
            f"{type(optimizer).__name__} trains matrices only and does not train "
            f"{', '.join(refused)}; give those that no other optimiser trains to another one: "
            "other.add_param_group({'params': [...]})",
            UserWarning,
            stacklevel=4,
        )


def _stands_for(name: str, gone: Sequence[str], trained: Sequence[str]) -> str | None:
    """Name of a trained Parameter that is gone, of the layer of the new one called ``name``.

    Of several the first, which of a converted layer are its prompts. A layer is the nearest module
    with Parameters that are gone. A meta-learner that its owner does not train, others may.
    """
    module, shared = name, ".meta_learner." in f".{name}"
    while module:
        module = module.rpartition(".")[0]
        prefix = f"{module}." if module else ""
        candidates = [n for n in gone if n.startswith(prefix)]
        found = next((n for n in candidates if n in trained), None)
        if found is not None or (candidates and not shared):
            return found
    return None
