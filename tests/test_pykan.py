"""The real pykan, from the package index: every method of a converted model against a plain one.

The plain model holds the same coefficients. A method does the same on both, or it raises on the
converted one and names the remedy.
"""

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kanmeta
from kanmeta import errors
from kanmeta.surgery import bindings

pytestmark = pytest.mark.filterwarnings("ignore")  # pykan's own


def build(seed: int = 0, **kwargs: Any) -> Any:
    from kan import KAN

    with torch.random.fork_rng(devices=[]):
        # Lists for mult_arity: upstream's expand_depth needs them.
        defaults = {"auto_save": False, "mult_arity": [[], [], []]}
        width = [[2, 0], [5, 0], [1, 0]]
        return KAN(width, grid=5, k=3, seed=seed, **defaults | kwargs)


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 2, generator=generator) * 2 - 1
    y = torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)
    return {
        "train_input": x[:200],
        "train_label": y[:200],
        "test_input": x[200:],
        "test_label": y[200:],
    }


X = data()["train_input"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder for the test, with a ``model`` in it: pykan writes there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: None)  # pykan's
    return tmp_path


def pair(**kwargs: Any) -> tuple[Any, Any]:
    """A converted model, and a plain one with the same coefficients; both have run once."""
    model = build(**kwargs)
    kanmeta.convert(model, hidden=4, dim_z=2, generator=torch.Generator().manual_seed(0))
    plain = kanmeta.materialize(copy.deepcopy(model))
    model(X)
    plain(X)
    return model, plain


def converted(model: nn.Module) -> int:
    return len(list(bindings(model)))


def same(a: object, b: object) -> None:
    """Compare what methods return."""
    if isinstance(a, nn.Module):
        return  # compared by output
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(a, float):
        assert math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5)
    else:
        assert type(a) is type(b)


Method = Callable[[Any], Any]

with_formulas = pytest.mark.skipif(
    sys.version_info >= (3, 13),  # it makes local variables with exec
    reason="pykan 0.2.8's symbolic_formula fails with Python 3.13",
)

IN_PLACE: dict[str, Method] = {
    "evaluate": lambda m: m.evaluate(data())["test_loss"],
    "attribute": lambda m: (m.attribute(), m.edge_scores, m.node_scores)[1:],
    "feature_score": lambda m: m.feature_score,
    "node_attribute": lambda m: m.node_attribute(),
    "feature_interaction": lambda m: m.feature_interaction(1),
    "get_act": lambda m: (m.get_act(X), m.acts)[1],
    "get_range": lambda m: m.get_range(0, 0, 0, verbose=False)[0],
    "get_fun": lambda m: m.get_fun(0, 0, 0),
    "tree": lambda m: m.tree(X),
    "reg": lambda m: (m.attribute(), m.get_reg("edge_forward_spline_n", 1.0, 2.0, 1.0, 1.0))[1],
    "fix_symbolic": lambda m: m.fix_symbolic(0, 0, 0, "sin", verbose=False, log_history=False),
    "unfix_symbolic": lambda m: (
        m.fix_symbolic(0, 0, 0, "sin", verbose=False, log_history=False),
        m.unfix_symbolic(0, 0, 0, log_history=False),
    )[1],
    "suggest_symbolic": lambda m: m.suggest_symbolic(0, 0, 0, lib=["x", "sin"], verbose=False)[0],
    "auto_symbolic": lambda m: m.auto_symbolic(lib=["x", "sin"], verbose=0),
    "symbolic_formula": lambda m: (
        m.auto_symbolic(lib=["x", "sin"], verbose=0),
        str(m.symbolic_formula()[0]),
    )[1],
    "prune_edge": lambda m: (m.attribute(), m.prune_edge(log_history=False))[1],
    "remove_edge": lambda m: m.remove_edge(0, 0, 0, log_history=False),
    "remove_node": lambda m: m.remove_node(1, 0, log_history=False),
    "set_mode": lambda m: m.set_mode(0, 0, 0, mode="n"),
    "plot": lambda m: m.plot(folder="figures"),
    "saveckpt": lambda m: m.saveckpt("kept"),
    "swap": lambda m: m.swap(1, 0, 3, log_history=False),
    "layer swap": lambda m: m.act_fun[0].swap(0, 1, mode="in"),
    "auto_swap": lambda m: m.auto_swap(),
    "update_grid": lambda m: m.update_grid(X),
    "swap after update_grid": lambda m: (m.update_grid(X), m.act_fun[0].swap(0, 1, mode="in"))[1],
    "update_grid_from_samples mode=grid": lambda m: m.act_fun[0].update_grid_from_samples(
        X, mode="grid"
    ),
    "expand_depth": lambda m: m.expand_depth(),
    "speed": lambda m: m.speed(),
}

FORMULAS = ("symbolic_formula", "tree")  # use exec


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[with_formulas] if n in FORMULAS else []) for n in IN_PLACE],
)
def test_methods_do_what_they_do_on_a_plain_model(name: str, folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    model, plain = pair()
    before = {n: z.detach().clone() for n, z in kanmeta.prompts(model).items()}
    same(IN_PLACE[name](model), IN_PLACE[name](plain))
    assert converted(model) == 2
    torch.testing.assert_close(model(X), plain(X), rtol=1e-4, atol=1e-5)
    ours, theirs = dict(model.named_buffers()), dict(plain.named_parameters())
    for tensor in ("act_fun.0.grid", "act_fun.1.mask", "symbolic_fun.0.affine"):
        torch.testing.assert_close(dict(model.named_parameters())[tensor], theirs[tensor])
    assert ("update_grid" in name) == any("coefficient_map" in n for n in ours)
    for n, z in kanmeta.prompts(model).items():  # the same numbers, perhaps in other places
        assert torch.equal(z.flatten().sort().values, before[n].flatten().sort().values)


MODELS: dict[str, Method] = {
    "copy": lambda m: m.copy(),
    "prune": lambda m: m.prune(node_th=0.02),
    "prune_node": lambda m: m.prune_node(active_neurons_id=[[4, 0, 2]], log_history=False),
    "prune_input": lambda m: m.prune_input(active_inputs=[1], log_history=False),
    "prune_node after update_grid": lambda m: (
        m.update_grid(X),
        m(X),
        m.prune_node(active_neurons_id=[[0, 3]], log_history=False),
    )[2],
    "rewind": lambda m: (m.saveckpt("model/0.0"), m.rewind("0.0"))[1],
    "checkout": lambda m: (m.saveckpt("model/0.0"), m.checkout("0.0"))[1],
    "get_subset": lambda m: m.act_fun[0].get_subset([1, 0], [4, 2, 3]),
}


@pytest.mark.parametrize("name", MODELS)
def test_methods_that_return_a_model_return_a_converted_one(name: str, folder: Path) -> None:
    model, plain = pair()
    ours, theirs = MODELS[name](model), MODELS[name](plain)
    assert converted(ours) == (1 if name == "get_subset" else 2)
    assert converted(model) == 2
    torch.testing.assert_close(model(X), plain(X), rtol=1e-4, atol=1e-5)

    def run(m: Any) -> Tensor:
        return m(X)[0] if name == "get_subset" else m(X)

    torch.testing.assert_close(run(ours), run(theirs), rtol=1e-4, atol=1e-5)
    kept = {tuple(z.tolist()) for z in kanmeta.prompts(model)["act_fun.0"].reshape(-1, 2)}
    layer = "" if name == "get_subset" else "act_fun.0"
    assert {tuple(z.tolist()) for z in kanmeta.prompts(ours)[layer].reshape(-1, 2)} <= kept
    # It is a model of its own, which trains and can be saved.
    expected = model(X).detach().clone()
    run(ours).sum().backward()
    for p in ours.parameters():
        if p.grad is not None:
            p.data.add_(0.1)
    assert torch.equal(model(X), expected)
    if name != "get_subset":
        kanmeta.save(ours, "pruned.safetensors")


def test_a_refined_model_is_plain_and_says_so(folder: Path) -> None:
    model, plain = pair()
    with pytest.warns(errors.PlainModelWarning, match=r"kanmeta\.convert"):
        refined = model.refine(10)
    assert converted(refined) == 0
    torch.testing.assert_close(refined(X), plain.refine(10)(X), rtol=1e-3, atol=1e-4)
    kanmeta.convert(refined, hidden=4)  # the advice helps


def test_saved_versions_are_the_librarys_and_can_be_loaded(folder: Path) -> None:
    """pykan saves itself while it trains; its files hold plain coefficients."""
    from kan import KAN

    model, _ = pair(auto_save=True)
    model.saveckpt("kept")
    loaded = KAN.loadckpt("kept")
    assert torch.equal(loaded(X), model(X))
    assert converted(loaded) == 0
    model.fit(data(), opt="Adam", steps=2, update_grid=False)
    with pytest.warns(errors.PlainModelWarning, match=r"kanmeta\.convert"):
        old = model.rewind("0.0")  # from before training: other coefficients
    assert converted(old) == 0


def test_expand_width_replaces_layers_and_the_rest_stays_usable(folder: Path) -> None:
    """Upstream puts new layers in place of the old ones; one of them owned the meta-learner."""
    from kan import KAN

    model = KAN([2, 3, 3, 3, 1], grid=3, k=3, seed=0, auto_save=False)
    kanmeta.convert(model, hidden=4)
    with pytest.warns(errors.PlainModelWarning, match=r"act_fun\.0, act_fun\.1"):
        model.expand_width(1, 2)
    assert converted(model) == 2
    kanmeta.save(model, "wider.safetensors")
    assert model(X).shape == (200, 1)


REFUSED: dict[str, Method] = {
    "perturb": lambda m: m.perturb(),
    "as target": lambda m: m.initialize_from_another_model(build(3), X),
    "grid of another": lambda m: m.initialize_grid_from_another_model(build(3), X),
    "grid of a parent": lambda m: m.act_fun[0].initialize_grid_from_parent(build(3).act_fun[0], X),
    "assign": lambda m: setattr(m.act_fun[0], "coef", nn.Parameter(torch.zeros(2, 5, 8))),
    "in place": lambda m: m.act_fun[0].coef.data.mul_(0),
    "element": lambda m: m.act_fun[0].scale_base.data[0].__setitem__(0, torch.tensor(0.0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_writes_raise_and_change_nothing(name: str, folder: Path) -> None:
    model, _ = pair()
    expected = model(X).detach().clone()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(errors.CoefficientWriteError, match="materialize"):
        REFUSED[name](model)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(X), expected)
    if name != "as target":  # which upstream cannot do for a model that has not run
        kanmeta.materialize(model)  # the advice helps
        REFUSED[name](model)


def test_fit_with_default_grid_updates_trains_a_converted_model(folder: Path) -> None:
    model = build()
    kanmeta.convert(model, hidden=16, dim_z=4, generator=torch.Generator().manual_seed(0))
    result = model.fit(data(), opt="LBFGS", steps=12, lamb=0.001)
    assert result["test_loss"][-1] < 0.25 * result["test_loss"][0]
    assert model.act_fun[0].coefficient_map is not None


def test_dead_affine_numbers_are_named_frozen_and_revived(folder: Path) -> None:
    model = build()
    affine = [model.symbolic_fun[i].affine for i in range(2)]
    planned = kanmeta.plan(model, hidden=4)
    assert "60 numbers of the model have no effect" in str(planned)
    kanmeta.convert(model, hidden=4)
    assert all(p.requires_grad for p in affine)
    kanmeta.materialize(model)

    kanmeta.convert(model, hidden=4, drop_dead=True)
    assert not any(p.requires_grad for p in affine)
    assert kanmeta.summary(model).trainable_after == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    kanmeta.save(model, "small.safetensors")
    loaded = kanmeta.load(build(3), "small.safetensors")
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if "affine" in n)
    model(X)
    model.fix_symbolic(0, 0, 0, "sin", verbose=False, log_history=False)
    assert [p.requires_grad for p in affine] == [True, False]
    kanmeta.materialize(model)
    assert all(p.requires_grad for p in affine)
    assert type(model) is type(build())


def test_checkpoint_goes_into_a_fresh_pykan(folder: Path) -> None:
    model, _ = pair()
    kanmeta.save(model, "kan.safetensors")
    fresh = kanmeta.load(build(seed=3), "kan.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(X), model(X))
        kanmeta.materialize(fresh)
        assert torch.equal(fresh(X), model(X))
    build(seed=4).load_state_dict(fresh.state_dict())


@with_formulas
def test_symbolic_functions_and_pruned_inputs_are_in_the_file(folder: Path) -> None:
    """pykan keeps both outside its state_dict."""
    from kan import KAN

    def widths(inputs: int) -> Any:
        return KAN([[inputs, 0], [5, 0], [1, 0]], grid=5, k=3, seed=9, auto_save=False)

    model, _ = pair()
    model.auto_symbolic(lib=["x", "sin", "exp"], verbose=0)
    kanmeta.save(model, "symbolic.safetensors")
    loaded = kanmeta.load(widths(2), "symbolic.safetensors")
    torch.testing.assert_close(loaded(X), model(X))
    assert str(loaded.symbolic_formula()[0]) == str(model.symbolic_formula()[0])

    model, _ = pair()
    pruned = model.prune_input(active_inputs=[1], log_history=False)
    kanmeta.save(pruned, "pruned.safetensors")
    loaded = kanmeta.load(widths(1), "pruned.safetensors")
    torch.testing.assert_close(loaded(X), pruned(X))


def test_a_file_with_a_function_that_is_not_known_leaves_the_model_alone(folder: Path) -> None:
    model, _ = pair()
    model.fix_symbolic(0, 0, 0, "sin", verbose=False, log_history=False)
    model.symbolic_fun[0].funs_name[1][1] = "of_my_own"
    kanmeta.save(model, "own.safetensors")
    fresh = build(seed=3)
    expected = fresh(X)
    with pytest.raises(errors.ModelMismatchError, match="of_my_own"):
        kanmeta.load(fresh, "own.safetensors")
    assert torch.equal(fresh(X), expected)
    assert fresh.symbolic_fun[0].funs_name[0][0] == "0"
    assert converted(fresh) == 0


def test_partly_converted_and_frozen_models_come_back_as_they_were(folder: Path) -> None:
    model = build()
    kanmeta.convert(model, hidden=4, include="act_fun.0")
    model(X)
    for result in (model.copy(), model.prune_node(active_neurons_id=[[0, 1]], log_history=False)):
        assert [name for name, _ in bindings(result)] == ["act_fun.0"]
    frozen = build(sb_trainable=False)
    kanmeta.convert(frozen, hidden=4)
    kanmeta.prompts(frozen)["act_fun.1"].requires_grad_(False)
    frozen(X)
    pruned = frozen.prune_node(active_neurons_id=[[0, 1]], log_history=False)
    assert converted(pruned) == 2
    assert not pruned.act_fun[0].scale_base.requires_grad
    assert [z.requires_grad for z in kanmeta.prompts(pruned).values()] == [True, False]


def test_a_pruned_model_in_the_place_of_one_that_shared_a_meta_learner(folder: Path) -> None:
    both = nn.ModuleDict({"a": build(), "b": build(1)})
    kanmeta.convert(both, hidden=4)
    both["a"](X)
    both["a"] = both["a"].prune_node(active_neurons_id=[[0, 1]], log_history=False)
    assert len(kanmeta.meta_learners(both)) == 2
    kanmeta.save(both, "both.safetensors")


def test_a_model_that_lost_its_converted_layers_is_a_plain_one(folder: Path) -> None:
    model = build()
    kanmeta.convert(model, hidden=4, drop_dead=True)
    for layer in model.act_fun:
        kanmeta.materialize(layer)
    model(X)
    model.perturb()  # no longer refused
    kanmeta.materialize(model)
    assert type(model) is type(build())
    assert all(p.requires_grad for n, p in model.named_parameters() if "affine" in n)
    with pytest.raises(errors.NothingToConvertError):
        kanmeta.materialize(model)


def test_frozen_splines_are_updated_by_the_library_itself(folder: Path) -> None:
    model = build()
    for layer in model.act_fun:
        layer.coef.requires_grad_(False)
    kanmeta.convert(model, hidden=4)
    plain = kanmeta.materialize(copy.deepcopy(model))
    for m in (model, plain):
        m(X)
        m.update_grid(X)
    torch.testing.assert_close(model(X), plain(X), rtol=1e-4, atol=1e-5)
