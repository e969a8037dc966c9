"""A meta-learner that *is* a linear code, with room to become better than it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kanmeta.meta import MetaLearner

__all__ = ["start"]


@torch.no_grad()
def start(
    axes: Tensor, codes: Sequence[Tensor], dim_z: int, hidden: int, activation: str, bias: bool
) -> tuple[MetaLearner, list[Tensor], Tensor]:
    """Return M, codes u and a constant with M(u) + constant = axes @ code, exactly.

    a(u) - a(-u) = u for relu, gelu and silu: a pair of hidden units for each number, where there
    are enough. Else the codes are shifted to where these activations are linear, which takes one
    unit. A very small tanh is linear too. Units that are left over do nothing yet.

    Args:
        axes: ``(dim_w, k)``.
        codes: of each layer, ``(E, k)``; k <= dim_z, k <= hidden.
        dim_z, hidden, activation, bias: of the meta-learner.
    """
    dim_w, k = axes.shape
    meta = MetaLearner(dim_z, hidden, dim_w, activation, bias).to(axes)
    u = [torch.nn.functional.pad(c, (0, dim_z - k)) for c in codes]
    largest = max(float(c.abs().max()) for c in codes)
    eye = torch.eye(k).to(axes)
    constant = axes.new_zeros(dim_w)
    used = k
    if activation in ("relu", "gelu", "silu") and hidden >= 2 * k:
        used = 2 * k
        meta.weight1[:used, :k] = torch.cat([eye, -eye])
        meta.weight2[:, :used] = torch.cat([axes, -axes], dim=1)
    elif activation in ("relu", "gelu", "silu"):
        steep = 1.0 if activation == "relu" else 64.0  # a(x) = x to rounding from 64 on
        shift = math.ceil(largest) + 1.0
        u = [torch.cat([c[:, :k] + shift, c[:, k:]], dim=1) for c in u]
        constant = -shift * axes.sum(1)
        meta.weight1[:k, :k] = steep * eye
        meta.weight2[:, :k] = axes / steep
    else:
        small = 1.0
        if activation == "tanh":
            small = math.sqrt(torch.finfo(axes.dtype).eps) / max(largest, 1.0)
        meta.weight1[:k, :k] = small * eye
        meta.weight2[:, :k] = axes / small
    if used < hidden:
        _spare_units(meta, used, u)
    return meta, u, constant


def _spare_units(meta: MetaLearner, used: int, codes: Sequence[Tensor]) -> None:
    """Bend the units that do nothing yet somewhere among the codes; their W2 stays 0.

    The first axis, where the codes spread most, gets most of the bends.
    """
    number = meta.hidden - used
    every = torch.cat([c[:: max(1, len(c) // 1024)] for c in codes])
    unit = torch.arange(number).to(every)
    others = torch.arange(1, meta.dim_z).to(every)
    weight = torch.cat(
        [(1 - 2 * (unit % 2))[:, None], torch.cos(unit[:, None] * 2 * others)], dim=1
    )
    meta.weight1[used:] = weight
    if meta.bias1 is not None:
        at = (every @ weight.T).sort(0).values  # (sample, units)
        place = ((unit + 0.5) / number * len(at)).long()
        meta.bias1[used:] = -at.gather(0, place[None])[0]
