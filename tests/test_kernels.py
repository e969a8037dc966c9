"""The Triton kernels: in Triton's interpreter on the CPU, and compiled for a GPU without one."""

import importlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import kanmeta
from kanmeta.families import GAUSSIAN, SILU, SPLINE, Family
from kanmeta.generate import from_matrices
from kanmeta.gpu import Kernels
from recipes.reference import efficient_kan, fast_kan

pytest.importorskip("triton")

FAMILIES = {
    "silu": Family(SILU),
    "splines": Family(SPLINE, 8, -1.4, 0.4),
    "gaussians": Family(GAUSSIAN, 5, -2.0, 1.0, 0.8),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def kernels():
    """The module, imported for Triton's interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        sys.modules.pop("kanmeta.kernels", None)
        yield importlib.import_module("kanmeta.kernels")
        sys.modules.pop("kanmeta.kernels")


def values(family, x):
    """Of the same functions by torch: ``(rows, functions, inputs)``."""
    x = x[:, None]
    centres = family.first + family.spacing * torch.arange(family.number).to(x)[:, None]
    if family.kind == SILU:
        return F.silu(x)
    if family.kind == GAUSSIAN:
        return torch.exp(-(((x - centres) / family.width) ** 2))
    # Convolution of boxes: divided differences of (t - x)+^3.
    u = (x - centres) / family.spacing
    powers = [F.relu(u + shift) ** 3 for shift in (2, 1, 0, -1, -2)]
    return sum(c * p for c, p in zip((1, -4, 6, -4, 1), powers, strict=True)) / 6


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(70, 37, 65), (1, 1, 1), (0, 3, 2)])
def test_products_equal_torch(kernels, name, rows, inputs, outputs):
    family = FAMILIES[name]
    make = torch.Generator().manual_seed(0)
    x = torch.randn(inputs, rows, generator=make).T.double().requires_grad_()  # not contiguous
    w = torch.randn(outputs, inputs, family.number, generator=make).permute(2, 1, 0).double()
    w.requires_grad_()
    gy = torch.randn(rows, outputs, generator=make)
    y = torch.einsum("nki,kio->no", values(family, x), w)
    expected = y, *torch.autograd.grad(y, (x, w), gy.double())

    points, coefficients = x.detach().float(), w.detach().float()
    found = torch.zeros(rows, outputs), torch.zeros_like(points), torch.zeros_like(coefficients)
    kernels.add_outputs(family, points, coefficients, found[0])
    kernels.add_input_gradient(family, points, coefficients, gy, found[1])
    kernels.weight_gradient(family, points, gy, found[2])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.detach(), **CLOSE)


@pytest.mark.parametrize("input_major", [False, True], ids=["oi", "io"])
@pytest.mark.parametrize("scratch", [1, 10_000_000], ids=["one input a tile", "one tile"])
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2, 3, 4)], ids=["all", "meta", "prompts"])
def test_layer_equals_autograd(kernels, input_major, scratch, frozen):
    make = torch.Generator().manual_seed(1)
    families, at = [FAMILIES["silu"], FAMILIES["splines"]], [0, 1]
    shape = (5, 3, 1) if input_major else (3, 5, 1)
    sources = [
        torch.randn(*s, generator=make).requires_grad_(i not in frozen)
        for i, s in enumerate([shape, (6, 1), (6,), (9, 6), (9,)])
    ]
    arguments = [torch.randn(4, 5, generator=make).requires_grad_() for _ in range(2)]
    gy = torch.randn(4, 3, generator=make)

    def generate(given):
        return from_matrices(*given[:5], activation="silu", scratch=10_000)

    w = generate((*sources, None))
    # In double precision: the powers of the reference cancel.
    phi = [values(f, arguments[i].double()) for f, i in zip(families, at, strict=True)]
    equation = "nki,iok->no" if input_major else "nki,oik->no"
    y = torch.einsum(equation, torch.cat(phi, 1), w.double()).float()
    every = [*arguments, *sources]
    expected = iter(torch.autograd.grad(y, [t for t in every if t.requires_grad], gy))

    layer = Kernels(families, at, input_major, generate, scratch)
    inputs = tuple(a.detach() for a in arguments)
    learned = [*(s.requires_grad for s in sources), False]
    torch.testing.assert_close(layer.forward(inputs, (*sources, None)), y, **CLOSE)
    found = layer.backward(inputs, (*sources, None), gy, [True, True], learned)
    assert found[-1] is None
    for tensor, mine in zip(every, found[:-1], strict=True):
        if tensor.requires_grad:
            torch.testing.assert_close(mine, next(expected), **CLOSE)
        else:
            assert mine is None


@pytest.mark.parametrize("library", [efficient_kan.KAN, fast_kan.FastKAN])
@pytest.mark.parametrize("budget", [None, 2_000])
def test_streamed_models_run_by_the_kernels(kernels, monkeypatch, library, budget):
    """As on a GPU, but in the interpreter; second derivatives go another way."""
    calls = []
    spied = kernels.add_outputs
    monkeypatch.setattr(kernels, "add_outputs", lambda *a: calls.append(a[0]) or spied(*a))
    monkeypatch.setattr("kanmeta.gpu.usable", lambda x: True)
    found = []
    for mode in ("materialize", "stream"):
        torch.manual_seed(0)
        model = kanmeta.convert(library([6, 5, 3]), dim_z=2, hidden=4)
        kanmeta.set_execution(model, mode, budget=budget)
        x = torch.randn(7, 6, requires_grad=True)
        every = [x, *(p for p in model.parameters() if p.requires_grad)]
        y = model(x)
        first = torch.autograd.grad(y.sum(), every, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), every, materialize_grads=True)
        leaf = x.detach().requires_grad_()
        model(leaf).square().sum().backward()
        found.append([y, *first, *second, leaf.grad, *(p.grad for p in every[1:])])
    assert {SILU} < {family.kind for family in calls}
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kanmeta import kernels

constants = dict(block_n=64, block_i=32, block_o=64, precision="ieee")
for name in ("_outputs", "_inputs", "_weights"):
    kernel = getattr(kernels, name)
    for kind in range(3) if name == "_inputs" else (1,):
        types = {
            a: "constexpr" if a in constants or a == "kind"
            else "*fp32" if a in ("x", "w", "y", "gy", "gx", "gw")
            else "fp32" if a in ("first", "spacing", "over") else "i32"
            for a in kernel.arg_names
        }
        source = ASTSource(kernel, types, dict(constants, kind=kind))
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
        print(name, kind)
"""


def test_kernels_compile_for_a_gpu(tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:kanmeta", "-c", COMPILE],
        env={"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 5
