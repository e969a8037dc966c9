"""A row of the case table: a small model of a library, and what an adapter must find in it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import kanmeta
from kanmeta.errors import LargerModelWarning
from tests import upstream


@dataclass(frozen=True)
class Case:
    """A library's model of two KAN layers, [4, 5, 3], and what an adapter must find in it."""

    name: str
    build: Callable[[], nn.Module]
    adapter: str
    dim_w: int
    layers: tuple[str, ...] = ("layers.0", "layers.1")
    adapters: tuple[kanmeta.Adapter, ...] = ()
    output: Callable[[Any], Tensor] = field(default=lambda y: y)
    layer_kwargs: dict[str, Any] = field(default_factory=dict)  # that make inputs independent
    pickles: bool = True  # torch.save(model) works before conversion
    in_shape: tuple[int, ...] = (4,)
    edge: str = "tap"
    layer: Callable[[int, int, int, int], nn.Module] | None = None
    """(inputs, outputs, groups, dimensions of the image: 0 for none) -> one layer, of any size."""
    ndims: tuple[int, ...] = (0,)
    groups: bool = False  # the layer has them
    bare: Callable[[nn.Module], object] = field(default=lambda layer: None)
    """Strips a converted layer, in place, of what mixes edges: projections of a bottleneck."""

    @property
    def available(self) -> bool:
        """Whether the library is at hand; where it is not, building the model skips the test."""
        return not self.name.startswith("upstream-") or upstream.AVAILABLE

    def model(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some libraries warn while they are built
            torch.manual_seed(seed)
            return self.build().to(dtype)

    def convert(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        kwargs = {"hidden": 3, "edge": self.edge, "adapters": self.adapters} | kwargs
        kwargs.setdefault("generator", torch.Generator().manual_seed(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LargerModelWarning)  # the models are tiny
            return kanmeta.convert(model, **kwargs)

    def run(self, model: nn.Module, x: Tensor) -> Tensor:
        return self.output(model(x))

    def x(self, n: int = 6, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(n, *self.in_shape, generator=generator, dtype=torch.float64)
        return (x * 1.8 - 0.9).to(dtype)
