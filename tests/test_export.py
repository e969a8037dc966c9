"""torch.compile, torch.export and ONNX of materialized models compute the same."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import kanmeta
from recipes.reference.efficient_kan import KAN
from recipes.reference.fast_kan import FastKAN

MODELS = {"efficient-kan": KAN, "fast-kan": FastKAN}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return kanmeta.convert(MODELS[request.param]([6, 40, 4])).eval()


@pytest.fixture(autouse=True)
def _no_compiled_code_left() -> Iterator[None]:
    yield
    torch.compiler.reset()


def rows(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 6) * 1.8 - 0.9


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_materialized_models_compile_and_export(model: nn.Module) -> None:
    x = rows()
    expected = model(x).detach()
    plain = kanmeta.materialize(copy.deepcopy(model))
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    batch = torch.export.Dim("batch", max=1 << 20)  # torch 2.6 wants a bound
    program = torch.export.export(plain, (x,), dynamic_shapes=({0: batch},), strict=False)
    names = {name.rpartition(".")[2] for name in program.state_dict}
    assert "prompts" not in names
    for n in (5, 3):
        y = rows(n)
        torch.testing.assert_close(program.module()(y), model(y))


@pytest.mark.filterwarnings("ignore")  # the exporter warns about itself
def test_a_materialized_model_runs_in_onnxruntime(model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs pip install onnx onnxscript onnxruntime")
    pytest.importorskip("onnxscript", reason="needs pip install onnx onnxscript onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="needs pip install onnxruntime")
    plain = kanmeta.materialize(copy.deepcopy(model))
    path = tmp_path / "kan.onnx"
    batch = torch.export.Dim("batch", max=1 << 20)  # torch 2.6 wants a bound
    torch.onnx.export(
        plain, (rows(),), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    for n in (5, 3):
        x = rows(n)
        (y,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-4, atol=1e-5)
