"""The univariate functions on the edges of a linear layer, found by asking the layer's forward."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kanmeta import registry
from kanmeta.api import materialize
from kanmeta.errors import PlanError
from kanmeta.layer_metric import first_tensor
from kanmeta.spec import LayerSpec
from kanmeta.surgery import bindings, is_converted

__all__ = ["Curves", "curves", "layer_specs"]

Edge = tuple[int, int]
"""(output, input)."""


class Curves(NamedTuple):
    """Functions of some edges: ``y[e, p]`` is phi_e(x[p]) - phi_e(0).

    Attributes:
        x: ``(points,)``.
        y: ``(edges, points)``.
        without_norm: whether the layer's norms were left out, as only then it is a sum of
            functions of one input each.
    """

    x: Tensor
    y: Tensor
    without_norm: bool


def layer_specs(model: nn.Module) -> dict[str, LayerSpec]:
    """Specs of the KAN layers of ``model`` by name, converted or not.

    Raises:
        PlanError: there is none.
    """
    found = {name: binding.spec for name, binding in bindings(model)}
    if not found:
        adapters = registry.all_adapters()
        for name, module in model.named_modules():
            spec, _ = registry.recognise(module, adapters)
            if spec is not None and spec.slots:
                found[name] = spec
    if not found:
        raise PlanError(f"no KAN layer in this {type(model).__name__}; kanmeta.plan says why")
    return found


@torch.no_grad()
def curves(layer: nn.Module, spec: LayerSpec, edges: Sequence[Edge], x: Tensor) -> Curves:
    """Evaluate the functions of ``edges`` at ``x``, by inputs that are zero but for one number.

    A KAN layer computes y_o = sum_i phi_oi(x_i) + constant, so that
    phi_oi(x) - phi_oi(0) = y_o(x e_i) - y_o(0); a constant of each function cannot be told.

    Args:
        layer: a layer with inputs ``(rows, inputs)``, converted or not; not changed.
        spec: of it.
        edges: (output, input) pairs.
        x: ``(points,)``.

    Raises:
        PlanError: the layer is a convolution, or no such sum, or gives numbers that are not finite.
    """
    if spec.kernel:
        raise PlanError(
            f"{spec.class_name} is a convolution: its edges act on patches. Functions can be "
            "drawn of layers with inputs of shape (rows, inputs)"
        )
    plain = copy.deepcopy(layer).eval()
    if is_converted(plain):
        materialize(plain)
    if next(plain.parameters()).dtype in (torch.float16, torch.bfloat16):
        plain.float()  # the same functions, without the rounding of sums
    like = next(plain.parameters())
    inputs = spec.sizes["i"] * spec.sizes.get("g", 1)
    for left_out in (False, True):
        if left_out and not _leave_out_norms(plain):
            break
        if _additive(plain, inputs, like):
            y = _responses(plain, inputs, edges, x.to(like))
            return Curves(x, y.to(x), left_out)
    raise PlanError(
        f"{spec.class_name} is not a sum of functions of one input each, with or without its "
        "norms, so that its edges have no curves; see its coefficients instead: "
        "kanmeta.plot.similarity"
    )


def _responses(layer: nn.Module, inputs: int, edges: Sequence[Edge], x: Tensor) -> Tensor:
    zero = first_tensor(layer(x.new_zeros(1, inputs)))[0]
    rows: dict[int, Tensor] = {}
    for i in sorted({i for _, i in edges}):
        hot = x.new_zeros(len(x), inputs)
        hot[:, i] = x
        rows[i] = first_tensor(layer(hot)) - zero
    return torch.stack([rows[i][:, o] for o, i in edges])


def _additive(layer: nn.Module, inputs: int, like: Tensor) -> bool:
    """Whether y(x) - y(0) is the sum of what the inputs of x give one by one."""
    generator = torch.Generator().manual_seed(0)
    number = min(inputs, 256)  # of a wide layer a part, the others stay zero
    x = torch.zeros(inputs, device="cpu")
    x[:number] = torch.rand(number, generator=generator, device="cpu") - 0.5
    one_by_one = torch.diag(x)[:number]
    rows = torch.cat([x[None], torch.zeros(1, inputs, device="cpu"), one_by_one]).to(like)
    y = first_tensor(layer(rows)).double()
    if not y.isfinite().all():
        raise PlanError(
            f"{type(layer).__name__} gives numbers that are not finite at inputs between -0.5 and "
            "0.5, so that it has no curves: training has diverged. Draw a model saved before"
        )
    parts = y[2:] - y[1]
    return bool((y[0] - y[1] - parts.sum(0)).abs().max() <= 1e-4 * parts.abs().sum(0).max())


def _leave_out_norms(layer: nn.Module) -> bool:
    """Put Identity in the place of norms; whether there were any."""
    found = False
    for module in [*layer.modules()]:
        for name, child in module.named_children():
            if "Norm" in type(child).__name__:
                module._modules[name] = nn.Identity()
                found = True
    return found
