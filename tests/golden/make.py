"""Make the golden checkpoints of a format: ``python -m tests.golden.make``, once a format.

Files of a format that was released are never made anew: that later versions read them is the point.
Where the library cannot be had, or a file is there already, nothing is written.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kanmeta
from recipes.reference import conv_chebyshev, efficient_kan, fast_kan, wav_kan

FOLDER = Path(__file__).parent


def efficient() -> nn.Module:
    return nn.Sequential(efficient_kan.KAN([4, 5, 3]), nn.Linear(3, 2))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 24), efficient_kan.KAN([24, 24, 5]))


def fast() -> nn.Module:
    return fast_kan.FastKAN([4, 5, 4, 3])


def conv() -> nn.Module:
    first = conv_chebyshev.KACNConv2DLayer(2, 3, kernel_size=2)
    return nn.Sequential(first, conv_chebyshev.KACNConv2DLayer(3, 2, kernel_size=1), nn.Flatten())


def wav() -> nn.Module:
    return wav_kan.KAN([4, 3, 2])


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), fast_kan.FastKAN([4, 3]))
    model[1].weight = model[0].weight
    return model


def pykan() -> nn.Module:
    from kan import KAN

    model: nn.Module = KAN([2, 3, 1], grid=3, k=2, auto_save=False, seed=0)
    return model


def grid_update(model: nn.Module) -> None:
    rows = torch.linspace(-2, 2, 60).view(-1, 4)
    model[0].layers[0].update_grid(rows)  # type: ignore[index, union-attr]


def symbolic(model: Any) -> None:
    model.fix_symbolic(0, 1, 2, "sin", fit_params_bool=False, verbose=False)


Change = Callable[[nn.Module], None]
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Change | None, dict[str, Any]]] = {
    "efficient": (efficient, {"dim_z": 2, "hidden": 3}, None, {}),
    "efficient-map": (efficient, {"hidden": 3}, grid_update, {}),
    "efficient-half": (efficient, {"clusters": "layer", "hidden": 3}, None, {"dtype": "float16"}),
    "fast-shared": (fast, {"clusters": [["layers.0", "layers.2"], ["layers.1"]]}, None, {}),
    "fast-tanh": (fast, {"hidden": 2, "activation": "tanh", "bias": False}, None, {}),
    "conv-tap": (conv, {"hidden": 3}, None, {}),
    "conv-pair": (conv, {"hidden": 3, "edge": "pair"}, None, {"prompt_bits": 3}),
    "wav": (wav, {"hidden": 3, "drop_dead": True}, None, {}),
    "tied": (tied, {"hidden": 3, "execution": "stream"}, None, {}),
    "pykan": (pykan, {"hidden": 3, "drop_dead": True}, symbolic, {}),
    **{
        f"efficient-{bits}": (efficient, {"dim_z": 2, "hidden": 3}, None, {"prompt_bits": bits})
        for bits in (16, 8, 4, 3, 2)
    },
    "efficient-wide": (wide, {"hidden": 3}, None, {"prompt_bits": 2}),
    "pykan-4": (pykan, {"hidden": 3}, symbolic, {"prompt_bits": 4}),
}
"""Name: what builds the model, arguments of ``convert``, what happens then, those of ``save``."""


def inputs(model: nn.Module) -> Tensor:
    if isinstance(next(model.children()), conv_chebyshev.KACNConv2DLayer):
        return torch.linspace(-0.9, 0.9, 54).view(3, 2, 3, 3)
    width = 2 if hasattr(model, "act_fun") else 4
    return torch.linspace(-0.9, 0.9, 3 * width).view(3, width)


def outputs(model: nn.Module) -> list[float]:
    """In evaluation mode, in float64, so that files are compared across machines."""
    model = model.double().eval()
    with torch.no_grad():
        y: Tensor = model(inputs(model).double())
    return [float(v) for v in y.flatten()]


def main() -> None:
    """Write what is missing: NAME.safetensors and what it computes, in outputs.json."""
    known = FOLDER / "outputs.json"
    expected = json.loads(known.read_text()) if known.exists() else {}
    for number, (name, (build, how, change, stored)) in enumerate(CASES.items()):
        path = FOLDER / f"{name}.safetensors"
        if path.exists():
            continue
        torch.manual_seed(number)
        model = kanmeta.convert(build(), **how)
        if change is not None:
            change(model)
        stored = {k: getattr(torch, v) if k == "dtype" else v for k, v in stored.items()}
        kanmeta.save(model, path, **stored)
        expected[name] = outputs(kanmeta.load(build(), path))
        sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")
    known.write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main()
