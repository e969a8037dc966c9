"""One number a prompt and relu: the tables of pieces give what the hidden layer gives."""

import pytest
import torch
from torch import Tensor

import kanmeta
from kanmeta import generate
from kanmeta.meta import MetaLearner
from recipes.reference.efficient_kan import KAN


def meta_learner(hidden: int, bias: bool) -> MetaLearner:
    """Random; with units that are always on or off, two equal ones, and a kink at 0."""
    meta = MetaLearner(1, hidden, 3, bias=bias).double()
    generator = torch.Generator().manual_seed(hidden)
    with torch.no_grad():
        for p in meta.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        meta.weight1[:2] = 0
        if meta.bias1 is not None:
            meta.bias1[:2] = torch.tensor([1.0, -1.0])
            meta.bias1[2] = 0
            meta.weight1[4], meta.bias1[4] = meta.weight1[3], meta.bias1[3]
    return meta


def by_tables(meta: MetaLearner, z: Tensor) -> Tensor:
    matrices = meta.weight1, meta.bias1, meta.weight2, meta.bias2
    return generate.from_matrices(z, *matrices, activation="relu", scratch=10_000)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [5, 64, 1024])
def test_values_and_first_and_second_derivatives_are_those_of_the_hidden_layer(
    hidden: int, bias: bool
) -> None:
    meta = meta_learner(hidden, bias)
    kinks = generate.kinks(meta.weight1, meta.bias1)
    near = kinks[kinks.abs() < 1e3]
    near = torch.cat([near + 1e-7, near - 1e-7])
    z = torch.cat([torch.linspace(-3, 3, 400, dtype=torch.float64), near])[:, None]
    z.requires_grad_()
    found = []
    for function in (meta, lambda z: by_tables(meta, z)):
        wanted = (z, *meta.parameters())
        w = function(z)
        first = torch.autograd.grad(w.sin().sum(), wanted, create_graph=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        found.append((w, *first, *again))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.detach().abs().max())
        )


@pytest.mark.parametrize("part", ["weight1", "bias1", "weight2", "bias2"])
def test_a_meta_learner_that_diverged_gives_no_numbers(part: str) -> None:
    meta = meta_learner(8, bias=True)
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    with torch.no_grad():
        getattr(meta, part)[-1] = torch.nan
        assert torch.equal(by_tables(meta, z).isnan(), meta(z).isnan())
        assert meta(z).isnan().any()


@pytest.mark.parametrize("execution", ["regenerate", "stream"])
def test_a_model_on_the_meta_device_runs(execution: str) -> None:
    model = kanmeta.convert(KAN([4, 6, 3]), execution=execution).to("meta")
    y = model(torch.empty(5, 4, device="meta"))
    y.sum().backward()
    assert y.shape == (5, 3)
    assert all(z.grad is not None for z in kanmeta.prompts(model).values())
