"""Triton kernels of a linear layer whose basis is known: nothing of ``(rows, inputs, functions)``.

The values B_k(x[n, i]) are made in registers where a product of blocks needs them and are never
written to memory. Three kernels, all sums in a fixed order (no atomics, so results are bit-equal
from run to run), w being the coefficients of one branch ``(functions, inputs, outputs)``:

    y[n, o]     += sum_ik B_k(x[n, i]) w[k, i, o]
    gx[n, i]    += sum_k B'_k(x[n, i]) sum_o gy[n, o] w[k, i, o]
    gw[k, i, o]  = sum_n B_k(x[n, i]) gy[n, o]

Importing this module needs triton; ``TRITON_INTERPRET=1`` before the import runs it on the CPU.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kanmeta.families import SPLINE, Family

__all__ = ["add_input_gradient", "add_outputs", "weight_gradient"]


@triton.jit  # type: ignore[untyped-decorator]
def _value(x, centre, over, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    if kind == 0:
        return x / (1.0 + tl.exp(-x))
    u = (x - centre) * over
    if kind == 1:
        a = tl.maximum(2.0 - tl.abs(u), 0.0)
        b = tl.maximum(1.0 - tl.abs(u), 0.0)
        return (a * a * a - 4.0 * b * b * b) * (1.0 / 6.0)
    return tl.exp(-u * u)


@triton.jit  # type: ignore[untyped-decorator]
def _slope(x, centre, over, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    if kind == 0:
        s = 1.0 / (1.0 + tl.exp(-x))
        return s * (1.0 + x * (1.0 - s))
    u = (x - centre) * over
    if kind == 1:
        a = tl.maximum(2.0 - tl.abs(u), 0.0)
        b = tl.maximum(1.0 - tl.abs(u), 0.0)
        side = tl.where(u > 0, -0.5, 0.5)
        return (a * a - 4.0 * b * b) * side * over
    return -2.0 * u * over * tl.exp(-u * u)


@triton.jit  # type: ignore[untyped-decorator]
def _outputs(  # type: ignore[no-untyped-def]
    x, w, y, rows, inputs, outputs, number, first, spacing, over,
    x_n, x_i, w_k, w_i, w_o,
    kind: tl.constexpr, block_n: tl.constexpr, block_i: tl.constexpr, block_o: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    o = tl.program_id(1) * block_o + tl.arange(0, block_o)
    total = tl.full((block_n, block_o), 0.0, tl.float32)
    for start in range(0, inputs, block_i):
        i = start + tl.arange(0, block_i)
        here = (n[:, None] < rows) & (i[None, :] < inputs)
        at = x + n[:, None].to(tl.int64) * x_n + i[None, :] * x_i
        values_of = tl.load(at, mask=here, other=0.0)
        for k in range(number):
            # Beyond the last input the coefficients are 0, so any value will do there.
            basis = _value(values_of, first + k * spacing, over, kind)
            part = w + k * w_k + i[:, None] * w_i + o[None, :] * w_o
            exists = (i[:, None] < inputs) & (o[None, :] < outputs)
            total += tl.dot(basis, tl.load(part, mask=exists, other=0.0), input_precision=precision)
    to = y + n[:, None].to(tl.int64) * outputs + o[None, :]
    exists = (n[:, None] < rows) & (o[None, :] < outputs)
    tl.store(to, tl.load(to, mask=exists, other=0.0) + total, mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _inputs(  # type: ignore[no-untyped-def]
    x, w, gy, gx, rows, inputs, outputs, number, first, spacing, over,
    x_n, x_i, w_k, w_i, w_o, g_n, g_i,
    kind: tl.constexpr, block_n: tl.constexpr, block_i: tl.constexpr, block_o: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    i = tl.program_id(1) * block_i + tl.arange(0, block_i)
    here = (n[:, None] < rows) & (i[None, :] < inputs)
    points = tl.load(x + n[:, None].to(tl.int64) * x_n + i[None, :] * x_i, mask=here, other=0.0)
    total = tl.full((block_n, block_i), 0.0, tl.float32)
    for k in range(number):
        pulled = tl.full((block_n, block_i), 0.0, tl.float32)
        for start in range(0, outputs, block_o):
            o = start + tl.arange(0, block_o)
            g = tl.load(
                gy + n[:, None].to(tl.int64) * outputs + o[None, :],
                mask=(n[:, None] < rows) & (o[None, :] < outputs),
                other=0.0,
            )
            part = w + k * w_k + i[None, :] * w_i + o[:, None] * w_o
            exists = (i[None, :] < inputs) & (o[:, None] < outputs)
            pulled += tl.dot(g, tl.load(part, mask=exists, other=0.0), input_precision=precision)
        total += pulled * _slope(points, first + k * spacing, over, kind)
    to = gx + n[:, None].to(tl.int64) * g_n + i[None, :] * g_i
    tl.store(to, tl.load(to, mask=here, other=0.0) + total, mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    x, gy, gw, rows, inputs, outputs, first, spacing, over,
    x_n, x_i, w_k, w_i, w_o,
    kind: tl.constexpr, block_n: tl.constexpr, block_i: tl.constexpr, block_o: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * block_i + tl.arange(0, block_i)
    o = tl.program_id(1) * block_o + tl.arange(0, block_o)
    k = tl.program_id(2)
    total = tl.full((block_i, block_o), 0.0, tl.float32)
    for start in range(0, rows, block_n):
        n = start + tl.arange(0, block_n)
        at = x + n[None, :].to(tl.int64) * x_n + i[:, None] * x_i
        points = tl.load(at, mask=(n[None, :] < rows) & (i[:, None] < inputs), other=0.0)
        g = tl.load(  # 0 beyond the last row, so any value of the basis will do there
            gy + n[:, None].to(tl.int64) * outputs + o[None, :],
            mask=(n[:, None] < rows) & (o[None, :] < outputs),
            other=0.0,
        )
        basis = _value(points, first + k * spacing, over, kind)
        total += tl.dot(basis, g, input_precision=precision)
    to = gw + k * w_k + i[:, None] * w_i + o[None, :] * w_o
    tl.store(to, total, mask=(i[:, None] < inputs) & (o[None, :] < outputs))


def add_outputs(family: Family, x: Tensor, w: Tensor, y: Tensor) -> None:
    """Add sum_ik B_k(x[n, i]) w[k, i, o] to ``y``.

    Args:
        family: the functions.
        x: ``(rows, inputs)``, float32, any strides.
        w: ``(functions, inputs, outputs)``, any strides.
        y: ``(rows, outputs)``, contiguous.
    """
    rows, inputs, outputs = *x.shape, w.shape[2]
    grid = (triton.cdiv(rows, 64), triton.cdiv(outputs, 64))
    if rows and outputs:
        _outputs[grid](
            x, w, y, rows, inputs, outputs, family.number, *_placed(family),
            *x.stride(), *w.stride(),
            kind=family.kind, block_n=64, block_i=32, block_o=64, precision=_precision(),
        )  # fmt: skip


def add_input_gradient(family: Family, x: Tensor, w: Tensor, gy: Tensor, gx: Tensor) -> None:
    """Add sum_k B'_k(x[n, i]) sum_o gy[n, o] w[k, i, o] to ``gx``, ``(rows, inputs)``.

    Args:
        family, x, w: see :func:`add_outputs`.
        gy: ``(rows, outputs)``, contiguous.
        gx: any strides.
    """
    rows, inputs, outputs = *x.shape, w.shape[2]
    grid = (triton.cdiv(rows, 64), triton.cdiv(inputs, 32))
    if rows and inputs:
        _inputs[grid](
            x, w, gy, gx, rows, inputs, outputs, family.number, *_placed(family),
            *x.stride(), *w.stride(), *gx.stride(),
            kind=family.kind, block_n=64, block_i=32, block_o=64, precision=_precision(),
        )  # fmt: skip


def weight_gradient(family: Family, x: Tensor, gy: Tensor, gw: Tensor) -> None:
    """Write sum_n B_k(x[n, i]) gy[n, o] to ``gw``, ``(functions, inputs, outputs)``, any strides.

    Args:
        family, x: see :func:`add_outputs`.
        gy: ``(rows, outputs)``, contiguous.
        gw: where to write.
    """
    rows, inputs, outputs = *x.shape, gw.shape[2]
    grid = (triton.cdiv(inputs, 32), triton.cdiv(outputs, 64), family.number)
    if inputs and outputs:
        _weights[grid](
            x, gy, gw, rows, inputs, outputs, *_placed(family),
            *x.stride(), *gw.stride(),
            kind=family.kind, block_n=64, block_i=32, block_o=64, precision=_precision(),
        )  # fmt: skip


def _placed(family: Family) -> tuple[float, float, float]:
    over = family.spacing if family.kind == SPLINE else family.width
    return family.first, family.spacing, math.nan if over == 0 else 1 / over


def _precision() -> Any:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
