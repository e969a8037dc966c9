"""Whether a layer can run by :mod:`kanmeta.fused`, found out by comparing it with its library.

An adapter declares a basis; a subclass, an option or another version of the library may compute
something else. So the first time, and whenever the layer has changed, its library's forward and
gradients are compared with ours on a few random rows. Where they differ, it is streamed instead.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta import blocks, fused
from kanmeta.basis import Basis, Known
from kanmeta.families import Family
from kanmeta.functions import Functions
from kanmeta.shadow import Shadow
from kanmeta.spec import LayerSpec
from kanmeta.stream import Sources, again
from kanmeta.sweep import Slot
from kanmeta.unkept import unkept

__all__ = ["TOLERANCES", "agree", "compute", "fits", "state"]

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Relative errors that rounding explains where the same is computed in another order."""


def fits(spec: LayerSpec, mapped: bool, args: tuple[Any, ...]) -> bool:
    """Whether the call is one that a declared basis describes: the layer's input and no more."""
    x = args[0]
    return (
        isinstance(spec.basis, Basis)
        and not mapped
        and len(args) == 1
        and {*spec.edge_axes} == {"o", "i"}
        and all(slot.path in spec.basis.branches for slot in spec.slots)
        and x.dtype in TOLERANCES
        and x.shape[-1] == spec.sizes["i"]
        and (spec.leading or x.dim() == 2)
        and not torch.is_autocast_enabled(x.device.type)
    )


def state(layer: nn.Module) -> tuple[object, ...]:
    """What a comparison holds for: it changes with attributes, children and what is trained."""
    modules = list(layer.modules())
    return (
        *(id(value) for m in modules for value in vars(m).values()),
        *(id(child) for m in modules for child in m._modules.values()),
        *(p.requires_grad for p in layer.parameters()),
        *(p.dtype for p in layer.parameters()),
    )


def compute(
    layer: nn.Module,
    spec: LayerSpec,
    x: Tensor,
    sources: Sources,
    *,
    activation: str,
    generate: Callable[[Sources], Tensor],
    scratch: int,
) -> Tensor | None:
    """Run the layer; None if its basis is not one that its adapter knows."""
    assert isinstance(spec.basis, Basis)
    branches = [spec.basis.branches[slot.path] for slot in spec.slots]
    known = [f for f in (branch.functions(layer) for branch in branches) if f is not None]
    if len(known) != len(branches):
        return None
    rows = x.reshape(-1, x.shape[-1])
    kinds = list(dict.fromkeys(branch.argument for branch in branches))
    arguments = [kinds.index(b.argument) for b in branches]
    described = fused.Layer(
        functions=Functions([f.evaluate for f in known], spec.widths, arguments),
        slots=_slots(known, spec.widths, arguments),
        families=partial(_families, known),
        input_major=spec.edge_axes == ("i", "o"),
        activation=activation,
        generate=generate,
        scratch=scratch,
    )
    given = [kind(layer, rows) for kind in kinds]
    with _remade(layer, kinds, given, rows, sources):
        y = fused.apply(described, tuple(given), sources)
    y = spec.basis.bias(layer, y)
    if spec.basis.finish is not None:
        y = again(layer, spec.basis.finish, y)
    return y.view(*x.shape[:-1], y.shape[-1])


def _slots(known: Sequence[Known], widths: Sequence[int], arguments: Sequence[int]) -> list[Slot]:
    """What derivatives of any order are made of; empty unless it is known of all functions."""
    each = zip(known, widths, arguments, strict=True)
    found = [Slot(f.derivatives, w, i) for f, w, i in each if f.derivatives is not None]
    return found if len(found) == len(known) else []


def _remade(
    layer: nn.Module,
    kinds: Sequence[Callable[[nn.Module, Tensor], Tensor]],
    given: Sequence[Tensor],
    rows: Tensor,
    sources: Sources,
) -> AbstractContextManager[object]:
    """Context in which backward makes what a norm gives of ``rows`` again: it is not kept."""
    own = rows.untyped_storage().data_ptr()
    names = {f"input {i} of the basis": i for i in range(len(given))}
    made = {n: given[i] for n, i in names.items() if given[i].untyped_storage().data_ptr() != own}
    if not made or not torch.is_grad_enabled():
        return nullcontext()
    shadow = Shadow(layer)
    number = len(shadow.tensors)
    wanted = {name: kinds[names[name]] for name in made}  # not the tensors: this one outlives them

    def again(kept: Sources) -> dict[str, Tensor]:
        x, *tensors = blocks.present(kept[: 1 + number])
        twin = shadow.layer(tensors, {})
        return {name: kind(twin, x) for name, kind in wanted.items()}

    return unkept(made, (rows, *shadow.tensors, *sources), again)


def _families(known: Sequence[Known]) -> list[Family] | None:
    """Formulas of all branches, or None."""
    found = [f.family for f in known if f.family is not None]
    return found if len(found) == len(known) else None


def agree(
    shape: Sequence[int],
    ours: Callable[[Tensor], Tensor | None],
    theirs: Callable[[Tensor], Any],
    like: Tensor,
    learned: Sequence[Tensor],
    matrices: Sequence[Tensor] = (),
) -> bool:
    """Whether values and gradients are those of the library, on a few random rows.

    Args:
        shape: of the rows.
        ours, theirs: rows to outputs.
        like: tensor whose dtype and device are the layer's.
        learned: tensors whose gradients are compared.
        matrices: further ones, of the meta-learner. Their gradients are sums over all edges, of
            which some cancel to 0 behind a norm and leave rounding of the size of the others.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    x[0] *= 4  # beyond the grid
    devices = [] if like.device.type == "cpu" else [like.device]
    found, all_of_them = [], [*learned, *matrices]
    # Checkpointing, which counts what is saved, sees nothing of this.
    unseen = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with torch.random.fork_rng(devices), torch.enable_grad(), unseen:
        for run in (ours, theirs):
            leaf = x.to(like).requires_grad_()
            y = run(leaf)
            if not isinstance(y, Tensor) or not y.requires_grad:
                return False
            weights = torch.linspace(-1, 1, y.numel(), device="cpu").view(y.shape).to(y)
            found.append(
                [
                    y.detach(),
                    *torch.autograd.grad(y, [leaf, *all_of_them], weights, allow_unused=True),
                ]
            )
    none = like.new_zeros(())
    largest = max((g.abs().max() for g in found[1][2:] if g is not None), default=none)
    summed = found[1][len(found[1]) - len(matrices) :]
    common = max((g.norm() for g in summed if g is not None), default=none)
    for i, (mine, other) in enumerate(zip(*found, strict=True)):
        if (mine is None) != (other is None):
            return False
        if mine is None:
            continue
        least = largest * 1e-3 if i < len(found[1]) - len(matrices) else common
        size = torch.maximum(other.norm(), least)
        if not (mine - other).norm() <= TOLERANCES[like.dtype] * size:
            return False
    return True
