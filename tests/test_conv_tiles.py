"""Convolutions with a declared basis: by tiles they give what the library's own forward gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kanmeta
from kanmeta import conv_cut
from kanmeta.cli.peak import LiveTensors
from kanmeta.conv_cut import Geometry, Problem
from kanmeta.surgery import bindings
from recipes.reference import conv_chebyshev, conv_fast_kan, conv_gram, conv_kan, conv_poly
from tests import upstream
from tests.execution_help import assert_same, derivatives, trained

pytestmark = pytest.mark.filterwarnings("ignore::kanmeta.errors.LargerModelWarning")

FAMILIES: dict[str, tuple[Any, str]] = {
    "splines": (conv_kan, "KANConv{}DLayer"),
    "gaussians": (conv_fast_kan, "FastKANConv{}DLayer"),
    "chebyshev": (conv_chebyshev, "KACNConv{}DLayer"),
    "jacobi": (conv_poly, "KAJNConv{}DLayer"),
    "gram": (conv_gram, "KAGNConv{}DLayer"),
}
GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 2, "stride": 2, "groups": 2},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
]
BUDGETS = 1, 20_000, None
"""Bytes: one image and channel at a time; some; all."""


def layer(family: str, ndim: int, **options: Any) -> nn.Module:
    """From 4 to 6 channels, float64; its grid is cast, too, which ``.double()`` does not do."""
    module, name = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = getattr(module, name.format(ndim))(4, 6, **options).double()
    if isinstance(getattr(made, "grid", None), Tensor):
        made.grid = made.grid.double()  # type: ignore[union-attr, operator]
    return made


def converted(family: str, ndim: int = 2, edge: str = "tap", **options: Any) -> nn.Module:
    """The same converted, with prompts of one number unless ``dim_z`` is given."""
    meta = {key: options.pop(key) for key in ("dim_z", "activation", "bias") if key in options}
    generator = torch.Generator().manual_seed(1)
    options = {"kernel_size": 3, "padding": 1, **options}
    made = layer(family, ndim, **options)
    return kanmeta.convert(
        made, execution="materialize", edge=edge, hidden=5, generator=generator, **meta
    )


def images(ndim: int = 2, n: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = n, 4, *(7, 6, 5)[:ndim]
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_tiled(model: nn.Module) -> None:
    """Nothing fell back to running the library's own forward."""
    assert all(binding.compared[1] for _, binding in bindings(model))


def assert_modes_agree(model: nn.Module, x: Tensor) -> None:
    expected = derivatives(model, x, model)
    for budget in BUDGETS:
        kanmeta.set_execution(model, "stream", budget=budget)
        found = derivatives(model, x, model)
        assert_tiled(model)
        assert_same(found, expected)
        again = derivatives(model, x, model)
        assert all(a is b or torch.equal(a, b) for a, b in zip(found, again, strict=True))
    kanmeta.set_execution(model, "materialize")


@pytest.mark.parametrize("options", GEOMETRIES, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("edge", ["tap", "pair"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("family", ["splines", "gaussians"])
def test_values_and_gradients(family: str, ndim: int, edge: str, options: dict[str, Any]) -> None:
    model = converted(family, ndim, edge, **options)
    assert_modes_agree(model, images(ndim))


@pytest.mark.parametrize("family", ["chebyshev", "jacobi", "gram"])
def test_polynomials(family: str) -> None:
    assert_modes_agree(converted(family, 2, kernel_size=2, stride=2, groups=2), images())
    assert_modes_agree(converted(family, 1, "pair", degree=1), images(1))


@pytest.mark.skipif(not upstream.AVAILABLE, reason="set KANMETA_UPSTREAM to run the library's own")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["KAN", "FastKAN", "KACN", "KAJN", "KAGN"])
def test_layers_of_the_library_itself(name: str, dtype: torch.dtype) -> None:
    """In float64, too, where the library's splines have a grid in float32."""
    cls = getattr(upstream.torch_conv_kan("kan_convs"), f"{name}Conv2DLayer")
    made = cls(4, 6, kernel_size=3, padding=1, groups=2).to(dtype)
    model, x = kanmeta.convert(made, execution="materialize"), images().to(dtype)
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=20_000)
    found = derivatives(model, x, model)
    assert_tiled(model)
    assert_same(found, expected, 1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize(
    "options",
    [{"dim_z": 3}, {"dim_z": 3, "activation": "gelu"}, {"activation": "identity"}, {"bias": False}],
    ids=lambda o: "-".join(f"{k}{v}" for k, v in o.items()),
)
@pytest.mark.parametrize("edge", ["tap", "pair"])
def test_meta_learners(edge: str, options: dict[str, Any]) -> None:
    assert_modes_agree(converted("splines", edge=edge, **options), images())


@pytest.mark.parametrize("family", FAMILIES)
def test_single_images_none_and_those_that_are_not_contiguous(family: str) -> None:
    model = converted(family)
    wide = torch.stack([images(n=10), images(n=10)], dim=-1)
    channels_last = images().contiguous(memory_format=torch.channels_last)
    for x in (images(n=1), wide[::2, ..., 1], channels_last):
        assert_modes_agree(model, x)
    kanmeta.set_execution(model, "stream")
    y = model(images(n=0))
    assert y.shape == (0, 6, 7, 6)
    gradients = torch.autograd.grad(y.sum(), trained(model), allow_unused=True)
    assert not any(g is not None and g.any() for g in gradients)


@pytest.mark.parametrize("frozen", ["prompts", "meta", "input"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    model, x = converted("splines"), images()
    for name, p in model.named_parameters():
        p.requires_grad_((frozen not in name) or frozen == "input")

    def run(x: Tensor) -> Tensor:
        return model(x.detach() if frozen == "input" else x)

    expected = derivatives(run, x, model)
    kanmeta.set_execution(model, "stream", budget=20_000)
    assert_same(derivatives(run, x, model), expected)
    assert_tiled(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_second_derivatives(family: str) -> None:
    """Of inputs, as differential equations need them, and a gradient step through them."""
    model, x = converted(family, activation="tanh"), images(n=3).requires_grad_()

    def found() -> list[Any]:
        y = model(x)
        targets = [x, *trained(model)]
        first = torch.autograd.grad(y.square().sum(), targets, create_graph=True)
        size = torch.stack([g.square().sum() for g in first]).sum()
        return [size.detach(), *torch.autograd.grad(size, targets)]

    expected = found()
    kanmeta.set_execution(model, "stream", budget=20_000)
    assert_same(found(), expected)
    assert_tiled(model)


def test_float32() -> None:
    model, x = converted("splines").float(), images().float()
    model.grid = model.grid.float()  # type: ignore[union-attr, operator]
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=20_000)
    assert_same(derivatives(model, x, model), expected, 1e-4)
    assert_tiled(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_it_runs_as_the_library_does(family: str) -> None:
    model, x = converted(family).float(), images().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=20_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = derivatives(model, x, model)
    assert found[0].dtype == expected[0].dtype
    assert_same(found, expected, 3e-2)


def test_checkpointing_around_it() -> None:
    model, x = converted("splines"), images()
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=20_000)

    def run(x: Tensor) -> Tensor:
        y = checkpoint(model, x, use_reentrant=False)
        assert isinstance(y, Tensor)
        return y

    assert_same(derivatives(run, x, model), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_norm_in_training_sees_all_images(family: str) -> None:
    model, x = converted(family, norm_layer=nn.BatchNorm2d), images()
    expected = derivatives(model, x, model)
    mean = model.layer_norm[0].running_mean.clone()  # type: ignore[index, union-attr]
    model.layer_norm[0].reset_running_stats()  # type: ignore[index, union-attr, operator]
    kanmeta.set_execution(model, "stream", budget=1)
    assert_same(derivatives(model, x, model), expected)
    assert_tiled(model)
    # The comparison with the library left no trace in it.
    torch.testing.assert_close(model.layer_norm[0].running_mean, mean)  # type: ignore[index, union-attr]


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_draws_what_the_library_draws(family: str) -> None:
    model, x = converted(family, dropout=0.4), images()

    def run(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        y = model(x)
        assert isinstance(y, Tensor)
        return y

    with torch.random.fork_rng(devices=[]):
        expected = derivatives(run, x, model)
        kanmeta.set_execution(model, "stream", budget=1)
        assert_same(derivatives(run, x, model), expected)
        assert_tiled(model)


def test_a_layer_that_computes_something_else_is_not_tiled() -> None:
    """Its forward is the library's, a method that it calls is not."""

    class KANConv2DLayer(conv_kan.KANConv2DLayer):
        def forward_group(self, x: Tensor, group: int) -> Tensor:
            return super().forward_group(x, group).square()

    model = KANConv2DLayer(4, 6, 3).double()
    kanmeta.convert(model, execution="materialize")
    x = images()
    expected = derivatives(model, x, model)
    kanmeta.set_execution(model, "stream", budget=20_000)
    assert_same(derivatives(model, x, model), expected)
    assert not any(binding.compared[1] for _, binding in bindings(model))


def test_hooks_inside_see_what_they_always_see() -> None:
    model, x = converted("splines"), images()
    kanmeta.set_execution(model, "stream", budget=20_000)
    seen: list[torch.Size] = []
    model.base_conv[0].register_forward_hook(lambda m, a, y: seen.append(y.shape))  # type: ignore[index, union-attr]
    model(x)
    assert seen == [(5, 6, 7, 6)]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_inputs_live_between_forward_and_backward(family: str) -> None:
    model, x = converted(family, norm_layer=nn.Identity), images(n=64)
    kanmeta.set_execution(model, "stream", budget=20_000)
    model(x)  # compares the basis with the library's

    def alive(mode: str) -> float:
        """In sizes of the input."""
        kanmeta.set_execution(model, mode, budget=20_000)
        leaf = x.detach().requires_grad_()
        with LiveTensors() as counter:
            y = model(leaf)
        outputs = 1 if family == "gaussians" else 2  # before norm and activation, and after
        return (counter.live - y.nbytes * outputs) / x.nbytes

    assert alive("stream") < 1.1
    assert alive("materialize") > 4


def test_sizes_of_tiles() -> None:
    problem = Problem(
        images=16,
        channels=64,
        a_channel=1000,
        a_value=100,
        an_image=50,
        functions=9,
        weights=4000,
        outputs=3000,
        products=400_000,
    )

    def taken(sizes: conv_cut.Sizes) -> int:
        a_channel = problem.a_channel + sizes.images * problem.a_value
        return sizes.channels * a_channel + sizes.images * problem.an_image

    one, all_of_it = conv_cut.Sizes(1, 1), conv_cut.Sizes(16, 64)
    assert conv_cut.cut(problem, 1) == one
    assert conv_cut.cut(problem, taken(all_of_it)) == all_of_it
    for numbers in (2000, 20_000, 60_000):
        sizes = conv_cut.cut(problem, numbers)
        assert 1 < sizes.images * sizes.channels < 16 * 64
        assert taken(sizes) <= numbers


def test_geometry() -> None:
    geometry = Geometry(kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 3))
    convolution = nn.Conv2d(1, 1, (3, 2), (2, 1), (1, 0), (2, 3))
    assert geometry.outputs((9, 8)) == tuple(convolution(torch.rand(1, 1, 9, 8)).shape[2:])
    assert geometry.extent(0) == 5
    assert geometry.taps == 6
    assert geometry.outputs((2, 2))[0] < 1
