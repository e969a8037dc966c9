"""The paper's own implementation as a rival in :mod:`recipes.memory`, from a checkout.

It has no licence, so nothing of it is here: its classes are imported by path and put together.
The hidden width of its meta-learner is that of the converted model it is compared with.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from recipes.checkouts import import_file

__all__ = ["convolutions", "fast_kan", "splines"]


def splines(checkout: Path, widths: Sequence[int], grid: int, hidden: int) -> nn.Module:
    """B-spline layers, one meta-learner a layer."""
    module = import_file(checkout / "base_model" / "metakan.py")
    model: nn.Module = module.MetaKAN([*widths], hidden_dim=hidden, grid_size=grid)
    return model


def fast_kan(checkout: Path, widths: Sequence[int], hidden: int) -> nn.Module:
    """Gaussian layers with eight centres, one meta-learner for all."""
    module = import_file(checkout / "image_classification" / "models" / "metafastkan.py")
    options = SimpleNamespace(
        embedding_dim=1,
        hidden_dim=hidden,
        num_grids=8,
        grid_min=-2.0,
        grid_max=2.0,
        input_size=widths[0],
        layers_width=[*widths[1:-1]],
        output_size=widths[-1],
        use_base_update=True,
        base_activation="silu",
        spline_weight_init_scale=0.1,
    )
    model: nn.Module = module.MetaFastKAN(options)
    return model


def convolutions(checkout: Path, channels: Sequence[int], kernel: int, hidden: int) -> nn.Module:
    """B-spline convolutions, one meta-learner for all."""
    path = checkout / "image_classification_conv" / "models" / "metaconvkan.py"
    return _Convolutions(import_file(path), channels, kernel, hidden)


class _Convolutions(nn.Module):
    """Hands each layer the weights it expects: its own networks have other strides and a head."""

    def __init__(self, module: Any, channels: Sequence[int], kernel: int, hidden: int) -> None:
        super().__init__()
        layers = [
            module.MetaKANConv2DLayer(inputs, outputs, kernel, padding=kernel // 2)
            for inputs, outputs in itertools.pairwise(channels)
        ]
        self.layers = nn.ModuleList(layers)
        numbers = layers[0].grid_k + 1
        self.meta = module.HyperNetwork(1, hidden, numbers)
        self.shapes = [(o, i * numbers, kernel, kernel) for i, o in itertools.pairwise(channels)]
        self.prompts = nn.ParameterList(
            nn.init.xavier_uniform_(torch.empty(o * i * kernel * kernel, 1))
            for i, o in itertools.pairwise(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer, prompts, shape in zip(self.layers, self.prompts, self.shapes, strict=True):
            x = layer(x, self.meta(prompts).reshape(shape))
        return x
