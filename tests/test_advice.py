"""Advice in messages is true: here it is followed, and works.

``tests/test_advice_found.py`` finds the messages by itself and sees that none is left out.
"""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import kanmeta
from kanmeta import errors, plot, registry
from kanmeta.registry import all_adapters
from recipes.reference import conv_kan, fast_kan
from recipes.reference.efficient_kan import KAN, KANLinear
from recipes.reference.fc_poly import KALNLayer
from tests.test_distill import ODD, Odd
from tests.test_distill_data import Once

SIZES = [20, 30, 10]
X = torch.rand(4, 20, generator=torch.Generator().manual_seed(0))


def told(part: str, error: type[Exception] = errors.PlanError) -> Any:
    """Expect an error that says ``part``."""
    return pytest.raises(error, match=re.escape(part))


def two(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(layers or (KANLinear(20, 30), KANLinear(30, 10))))


# --- convert and plan ---------------------------------------------------------------------------


def test_of_convert_about_numbers_that_are_not_finite() -> None:
    model = two()
    with torch.no_grad():
        model[0].spline_weight[0] = torch.nan
    with told("load or draw others first, or leave the layer out with exclude="):
        kanmeta.convert(model)
    kanmeta.convert(copy.deepcopy(model), exclude="0")
    model[0].reset_parameters()
    kanmeta.convert(model)


def test_of_convert_about_layers_that_are_converted() -> None:
    model = kanmeta.convert(two(), include="0")
    with told("call kanmeta.materialize(model) first", errors.AlreadyConvertedError):
        kanmeta.convert(model)
    with told("leave these out with exclude=", errors.AlreadyConvertedError):
        kanmeta.convert(model)
    kanmeta.convert(model, exclude="0")
    assert [*kanmeta.prompts(model)] == ["0", "1"]
    kanmeta.convert(kanmeta.materialize(model), dim_z=3)


def test_of_convert_about_names() -> None:
    model = two()
    model[0].prompts = "mine"
    with told("rename them or exclude the layer"):
        kanmeta.convert(model)
    kanmeta.convert(copy.deepcopy(model), exclude="0")
    del model[0].prompts
    kanmeta.convert(model)


def test_of_convert_about_the_meta_device() -> None:
    with torch.device("meta"):
        model = two()
    with told("give the model real tensors first (model.to_empty(device=...) and its reset_param"):
        kanmeta.convert(model)
    model.to_empty(device="cpu")
    for layer in model:
        layer.grid.copy_(KANLinear(*layer.spline_weight.shape[1::-1]).grid)
        layer.reset_parameters()
    assert kanmeta.convert(model)(X).isfinite().all()


def test_of_convert_about_parametrised_tensors() -> None:
    model = two()
    nn.utils.parametrizations.weight_norm(model[0], "base_weight")
    with pytest.warns(errors.SkippedLayerWarning):
        kanmeta.convert(copy.deepcopy(model))
    model = two()
    model[0].spline_weight = type("Quantised", (nn.Parameter,), {})(torch.zeros(30, 20, 8))
    with told("Convert before quantising, sharding or parametrising the model"):
        kanmeta.convert(model)
    model = kanmeta.convert(two())
    nn.utils.parametrizations.weight_norm(model[0].meta_learner, "weight1")
    assert model(X).isfinite().all()


def test_of_convert_about_tied_tensors() -> None:
    model = two(KANLinear(20, 20), KANLinear(20, 20))
    model[1].spline_weight = model[0].spline_weight
    with told("leave the layers out with exclude="):
        kanmeta.convert(model)
    kanmeta.convert(two(*model, KANLinear(20, 30)), exclude=["0", "1"])
    layer = KANLinear(20, 20)
    with told("Use one layer object twice instead of tying"):
        kanmeta.convert(model)
    twice = kanmeta.convert(two(layer, layer))
    assert twice(X).isfinite().all()


def test_of_clusters() -> None:
    with told("name every layer, or leave layers out of the conversion with exclude="):
        kanmeta.plan(two(), clusters={"0": 0})
    kanmeta.plan(two(), clusters={"0": 0, "1": 0})
    kanmeta.plan(two(), clusters={"0": 0}, exclude="1")
    with told("name each layer once"):
        kanmeta.plan(two(), clusters=[["0", "1"], ["0"]])
    kanmeta.plan(two(), clusters=[["0", "1"]])
    mixed = two(KANLinear(20, 30), fast_kan.FastKANLayer(30, 20))
    with told("put them into different clusters"):
        kanmeta.plan(mixed, clusters=[["0", "1"]])
    assert len(kanmeta.plan(mixed, clusters=[["0"], ["1"]]).clusters) == 2
    with told("at least one meta-learner is needed"):
        kanmeta.plan(two(), clusters=0)
    kanmeta.plan(two(), clusters=1)


@pytest.mark.parametrize("argument", ["include", "clusters"])
def test_of_misspelt_names(argument: str) -> None:
    model = KAN(SIZES)
    given = "layer.0" if argument == "include" else [["layer.0"], ["layers.1"]]
    with told("Did you mean") as caught:
        kanmeta.plan(model, **{argument: given})
    meant = re.findall(r"Did you mean '(.*)'\?", str(caught.value))[0]
    assert meant == "layers.0"


def test_of_example_inputs() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kan = KAN(SIZES)

        def forward(self, x: Tensor) -> Tensor:
            return self.kan(x) if x.sum() > 0 else self.kan(-x)

    with told("leave it out to take the order of registration"):
        kanmeta.plan(Branching(), example_inputs=[torch.rand(2, 3)])
    kanmeta.plan(Branching())
    with told("Expected a sequence of the positional arguments of its forward"):
        kanmeta.plan(Branching(), example_inputs=X)
    kanmeta.plan(Branching(), example_inputs=[X])


def test_of_adapters() -> None:
    mine = dataclasses.replace(all_adapters()[0], name="efficient-kan")
    part = "Choose another name, or pass yours to convert(model, adapters=[...])"
    with told(part, errors.AdapterError):
        registry.register_adapter(mine)
    (theirs,) = (a for a in all_adapters() if a.name == "efficient-kan")
    changed = dataclasses.replace(theirs, basis=None)
    planned = kanmeta.plan(KAN(SIZES), adapters=[changed])
    assert planned.layers[0].spec.basis is None  # it was asked first


def test_of_models_that_are_none_or_not_converted() -> None:
    model = KAN(SIZES)
    with told("call kanmeta.convert(model) first", errors.NothingToConvertError):
        kanmeta.prompts(model)
    kanmeta.prompts(kanmeta.convert(model))


# --- a converted model --------------------------------------------------------------------------


def test_of_layers_without_their_meta_learner() -> None:
    model = kanmeta.convert(KAN(SIZES))
    part = "Pass the module that was converted; to take layers out of it, call kanmeta.materialize"
    head = nn.Sequential(model.layers[1])
    with told(part, errors.SharingError):
        kanmeta.save(head, "nowhere")
    kanmeta.summary(model)
    y = model.layers[1](torch.ones(2, 30))
    kanmeta.materialize(model.layers[1])
    torch.testing.assert_close(head(torch.ones(2, 30)), y)
    assert [*kanmeta.prompts(model)] == ["layers.0"]
    model = kanmeta.convert(KAN(SIZES))
    kanmeta.materialize(model.layers[0])  # the owner hands the meta-learner on
    kanmeta.summary(nn.Sequential(model.layers[1]))


def test_of_meta_learners_that_are_replaced() -> None:
    model = kanmeta.convert(KAN(SIZES))
    part = "Change its parameters in place, or materialize the model and convert it anew"
    with told(part, errors.SharingError):
        model.layers[1].meta_learner = nn.Identity()
    y = model(X)
    with torch.no_grad():
        next(iter(kanmeta.meta_learners(model).values())).weight2.mul_(2)
    assert not torch.equal(model(X), y)
    kanmeta.convert(kanmeta.materialize(model), activation="tanh")


def test_of_writes_to_what_is_generated() -> None:
    model = kanmeta.convert(KAN(SIZES))
    with told("Train the prompts instead (kanmeta.prompts(model))", errors.CoefficientWriteError):
        model.layers[0].spline_weight.data.zero_()
    model(X).sum().backward()
    y, weight = model(X), model.layers[0].spline_weight.detach().clone()
    torch.optim.SGD(kanmeta.prompts(model).values(), lr=1.0).step()
    assert not torch.equal(model.layers[0].spline_weight, weight)
    kanmeta.materialize(model).layers[0].spline_weight.data.zero_()
    assert not torch.equal(model(X), y)
    model.load_state_dict(KAN(SIZES).state_dict())
    kanmeta.convert(model)


def test_of_layers_that_cannot_stream() -> None:
    model = kanmeta.convert(two(KALNLayer(20, 30), KANLinear(30, 10)))
    with told("Use 'auto', or set_execution(model, 'stream', layers=...) for the others"):
        kanmeta.set_execution(model, "stream")
    y = model(X)
    for execution, options in (("auto", {"budget": 10_000}), ("stream", {"layers": ["1"]})):
        kanmeta.set_execution(model, execution, **options)
        torch.testing.assert_close(model(X), y)


def test_of_forwards_that_cannot_stream() -> None:
    class FastKANLayer(fast_kan.FastKANLayer):
        def forward(self, x: Tensor, use_layernorm: bool = True) -> Any:
            return {"y": super().forward(x, use_layernorm)}

    layer = kanmeta.convert(FastKANLayer(20, 30), execution="stream")
    part = "kanmeta.set_execution(model, 'regenerate') for this layer"
    with told(part, errors.ExecutionError):
        layer(X)
    assert kanmeta.set_execution(layer, "regenerate")(X)["y"].shape == (4, 30)


def test_of_layers_that_change_while_they_run() -> None:
    class KANLinear(type(KAN(SIZES).layers[0])):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            self.update_grid(x)
            return super().forward(x)

    x = torch.linspace(-0.9, 0.9, 50)[:, None].repeat(1, 20)
    layer = kanmeta.convert(KANLinear(20, 30), execution="stream")
    part = "Choose kanmeta.set_execution(model, 'regenerate', layers=...)"
    with told(part, errors.ExecutionError):
        layer(x)
    assert kanmeta.set_execution(layer, "regenerate", layers="*")(x).isfinite().all()


def test_of_prompts_that_change_before_backward() -> None:
    part = "Call backward before you change it, or use kanmeta.set_execution(model, 'materialize')"
    model = kanmeta.convert(KAN(SIZES), execution="regenerate")

    def change() -> None:
        with torch.no_grad():
            model.layers[0].prompts.add_(0.1)

    y = model(X).sum()
    change()
    with told(part, RuntimeError):
        y.backward()
    model(X).sum().backward()
    change()


def test_of_prompts_that_cannot_be_stored_in_few_bits(tmp_path: Path) -> None:
    model = kanmeta.convert(KAN(SIZES))
    with torch.no_grad():
        model.layers[0].prompts[0] = 1e6  # beyond float16
    part = "Use prompt_bits=8, or None if training has diverged"
    with told(part, errors.CheckpointError):
        kanmeta.save(model, tmp_path / "model", prompt_bits=16)
    kanmeta.save(model, tmp_path / "model", prompt_bits=8)
    with torch.no_grad():
        model.layers[0].prompts[0] = torch.nan
    with told(part, errors.CheckpointError):
        kanmeta.save(model, tmp_path / "model", prompt_bits=8)
    kanmeta.save(model, tmp_path / "model")


# --- files --------------------------------------------------------------------------------------


class Counting(nn.Module):
    def get_extra_state(self) -> int:
        return 3

    def set_extra_state(self, state: object) -> None:
        pass


def test_of_save_about_other_things_than_tensors(tmp_path: Path) -> None:
    model = kanmeta.convert(nn.ModuleList([KAN(SIZES), Counting()]))
    with told("Remove that module's get_extra_state", errors.CheckpointError):
        kanmeta.save(model, tmp_path / "model")
    model[1] = nn.Identity()
    kanmeta.save(model, tmp_path / "model")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_of_save_about_prompts_that_are_computed(tmp_path: Path) -> None:
    part = "prune.remove, parametrize.remove_parametrizations or remove_weight_norm first"
    for make, undo in (
        (lambda of: prune.l1_unstructured(of, "prompts", 0.5), prune.remove),
        (
            lambda of: parametrize.register_parametrization(of, "prompts", nn.Tanh()),
            parametrize.remove_parametrizations,
        ),
        (lambda of: nn.utils.weight_norm(of, "prompts"), nn.utils.remove_weight_norm),
    ):
        model = kanmeta.convert(KAN(SIZES))
        make(model.layers[0])
        y = model(X)
        with told(part, errors.CheckpointError):
            kanmeta.save(model, tmp_path / "model")
        assert not (tmp_path / "model").exists()
        undo(model.layers[0], "prompts")
        kanmeta.save(model, tmp_path / "model")
        torch.testing.assert_close(kanmeta.load(KAN(SIZES), tmp_path / "model")(X), y)
        (tmp_path / "model").unlink()


def test_of_load_about_files_of_others(tmp_path: Path) -> None:
    trained = KAN(SIZES)
    save_file(trained.state_dict(), tmp_path / "plain")
    torch.save(trained.state_dict(), tmp_path / "pickle")
    foreign = errors.ForeignCheckpointError
    with told("load files of other formats before you convert the model", foreign):
        kanmeta.load(KAN(SIZES), tmp_path / "pickle")
    with told("is loaded before convert, with the library's own means", foreign):
        kanmeta.load(KAN(SIZES), tmp_path / "plain")
    model = KAN(SIZES)
    model.load_state_dict(torch.load(tmp_path / "pickle", weights_only=True))
    kanmeta.convert(model, distill=True)


@pytest.mark.parametrize("left", [100, -7])
def test_of_load_about_damaged_files(left: int, tmp_path: Path) -> None:
    kanmeta.save(kanmeta.convert(KAN(SIZES)), tmp_path / "model")
    good = (tmp_path / "model").read_bytes()
    (tmp_path / "copy").write_bytes(good[:left])
    with told("Copy or save it again", errors.CorruptCheckpointError):
        kanmeta.load(KAN(SIZES), tmp_path / "copy")
    (tmp_path / "copy").write_bytes(good)
    kanmeta.load(KAN(SIZES), tmp_path / "copy")


def test_of_load_about_models(tmp_path: Path) -> None:
    path = tmp_path / "model"
    model = kanmeta.convert(KAN(SIZES))
    kanmeta.save(model, path)
    already = errors.AlreadyConvertedError
    with told("build a new one, or call kanmeta.materialize(model) first", already):
        kanmeta.load(model, path)
    kanmeta.load(KAN(SIZES), path)
    kanmeta.load(kanmeta.materialize(model), path)


def test_of_load_about_models_made_in_inference_mode(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(KAN(SIZES), nn.Linear(10, 3))

    kanmeta.save(kanmeta.convert(build()), tmp_path / "model")
    with torch.inference_mode():
        model = build()
    with told("build the model outside of it", errors.ModelMismatchError):
        kanmeta.load(model, tmp_path / "model")
    kanmeta.load(build(), tmp_path / "model")


def test_of_load_about_adapters(tmp_path: Path) -> None:
    (theirs,) = (a for a in all_adapters() if a.name == "efficient-kan")
    mine = dataclasses.replace(theirs, name="mine")
    kanmeta.save(kanmeta.convert(KAN(SIZES), adapters=[mine]), tmp_path / "model")
    with told("pass it to load(..., adapters=[...])", errors.ModelMismatchError):
        kanmeta.load(KAN(SIZES), tmp_path / "model")
    kanmeta.load(KAN(SIZES), tmp_path / "model", adapters=[mine])


# --- distilling ---------------------------------------------------------------------------------


def test_of_distill() -> None:
    few = {"steps": 1, "layer_steps": 1, "fit_steps": 1, "loss": "mse"}
    teacher = KAN(SIZES)

    def student(**options: Any) -> nn.Module:
        return kanmeta.convert(KAN(SIZES), dim_z=2, **options)

    x = torch.rand(64, 20)
    with told("hidden=1 is too narrow for 2 numbers per edge"):
        kanmeta.distill(student(hidden=1), teacher)
    kanmeta.distill(student(hidden=2), teacher, fit_steps=1)
    with told("ask for stages that need data: pass data="):
        kanmeta.distill(student(), teacher, prompt_bits=8)
    kanmeta.distill(student(), teacher, prompt_bits=8, data=x, **few)
    with torch.inference_mode():
        made = student()
    with told("build the model outside of it"):
        kanmeta.distill(made, teacher)
    with told("pass the DataLoader itself, or a list of batches"):
        kanmeta.distill(student(), teacher, data=iter([x]))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=32)
    with told("Pass batches of that form"):
        kanmeta.distill(student(), teacher, data=[{"x": x}])
    for data in ([x], loader):
        kanmeta.distill(student(), teacher, data=data, **few)


def test_of_outputs_that_are_matched() -> None:
    few: dict[str, Any] = {"steps": 1, "layer_steps": 1, "fit_steps": 1}
    teacher, x = KAN(SIZES), torch.rand(64, 20)
    student = kanmeta.convert(KAN(SIZES), dim_z=2)
    first = ODD["input first"]
    with told("expected its outputs to be matched. Let it give them first"):
        kanmeta.distill(Odd(student, first), Odd(teacher, first), data=x, **few)
    kanmeta.distill(student, teacher, data=x, **few)
    numbers = Odd(student, ODD["number"]), Odd(teacher, ODD["number"])
    with told('use loss="mse", or a function of your own'):
        kanmeta.distill(*numbers, data=x, loss="kl", **few)
    for loss in ("mse", torch.nn.functional.l1_loss):
        kanmeta.distill(*numbers, data=x, loss=loss, **few)
    for wrong in (lambda s, t: (s - t).square(), lambda s, t: (s - t).square().mean().item()):
        with told("Write for instance (student - teacher).square().mean()"):
            kanmeta.distill(student, teacher, data=x, loss=wrong, **few)
    right = lambda student, teacher: (student - teacher).square().mean()  # noqa: E731
    kanmeta.distill(student, teacher, data=x, loss=right, **few)
    with told("when it is read again: expected the same ones. Pass the DataLoader itself"):
        kanmeta.distill(student, teacher, data=Once(x), **few)


# --- pictures -----------------------------------------------------------------------------------


def test_of_plot() -> None:
    pytest.importorskip("matplotlib")
    model = kanmeta.convert(KAN(SIZES), clusters="layer")
    with told("so that their prompts mean different things; draw them one by one"):
        plot.prompts(model, layers=["layers.0", "layers.1"])
    for name in ("layers.0", "layers.1"):
        plot.prompts(model, layers=[name])
    mixed = two(KANLinear(20, 30), KANLinear(30, 10, grid_size=9))
    with told("coefficients an edge; draw them one by one"):
        plot.similarity(mixed, layers=["0", "1"])
    for name in ("0", "1"):
        plot.similarity(mixed, layers=[name])
    with told("see its coefficients instead: kanmeta.plot.similarity"):
        plot.functions(two(KALNLayer(20, 30)))
    plot.similarity(two(KALNLayer(20, 30)))
    with told("Functions can be drawn of layers with inputs of shape (rows, inputs)"):
        plot.functions(two(conv_kan.KANConv2DLayer(2, 3, 3)))
    plot.functions(two())
    with told("no KAN layer in this Linear; kanmeta.plan says why"):
        plot.functions(nn.Linear(2, 2))
    with told("no layer to convert", errors.NothingToConvertError):
        kanmeta.plan(nn.Linear(2, 2))
