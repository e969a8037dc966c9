"""Layers that people took from KAN libraries and changed, or wrote anew, in small networks.

Where kanmeta does not know the class, the adapter is one that a user would write.
"""

from collections.abc import Callable

from torch import nn

import kanmeta
from kanmeta import Adapter, Slot
from tests.zoo import IN_ORDER, Model, images, imported, vectors
from tests.zoo_networks import FASTER

FAST_CONV = Adapter(  # of KA-Conv and of U-KAN's diffusion: as a user would describe it
    name="ka-conv",
    class_names=("FastKANConvLayer",),
    slots=(Slot("spline_conv.weight", "o (k i) ..."), Slot("base_conv.weight", "o i ...")),
    plain={"spline_conv.bias": "o", "base_conv.bias": "o"},
    free=("rbf.*",),
    edges="o i ...",
)


def _ka_conv(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = imported("KA-Conv", "kaconv.kaconv.fastkanconv").FastKANConvLayer
        return nn.Sequential(
            layer(3, 4, padding=1, kernel_size=3, stride=1, kan_type=kind),
            nn.BatchNorm2d(4),
            layer(4, 6, padding=1, kernel_size=3, stride=2, kan_type=kind),
            nn.BatchNorm2d(6),
            layer(6, 4, padding=1, kernel_size=3, stride=2, kan_type=kind),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    return make


def _kan_conv2d(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = getattr(imported("KANConv2d", "KANConv2Dlayers", "convKAN"), name)
        return nn.Sequential(layer(3, 4, 3, padding=1), layer(4, 2, 3))

    return make


LKAN = Adapter(
    name="lkan",
    class_names=("KANLinear",),
    slots=(Slot("coeff", "o i k", scaled_by="scale_spline"), Slot("scale_base", "o i")),
    plain={"grid": "i t"},
    optional_plain={"bias": "o"},
)

BSRBF = Adapter(
    name="bsrbf",
    class_names=("BSRBF_KANLayer",),
    slots=(Slot("base_weight", "o i"), Slot("spline_weight", "o (i k)")),
    plain={"grid": "i t"},
    free=("layernorm.*", "rbf.*"),
)


def _fcn_kan() -> nn.Module:
    layer = imported("FCN-KAN", "kan_layer").KANLayer
    return nn.Sequential(layer(4, 3), layer(3, 2))


def _kan(
    name: str,
    repository: str,
    module: str,
    cls: str,
    *below: str,
    adapters: tuple[Adapter, ...] = (),
) -> Model:
    """A fully connected network of two layers."""
    return Model(
        name,
        repository,
        lambda: getattr(imported(repository, module, *below), cls)([6, 5, 4]),
        vectors(6),
        2,
        adapters=adapters,
    )


MODELS = [
    *(
        Model(
            f"kanconv2d-{name}", "KANConv2d", _kan_conv2d(name), images(size=5), 2, order=IN_ORDER
        )
        for name in (
            "KANConv2d",
            "ChebyKANConv2d",
            "FastKANConv2d",
            "GRAMKANConv2d",
            "WavKANConv2d",
            "JacobiKANConv2d",
            "RBFKANConv2d",
        )
    ),
    *(
        Model(f"ka-conv-{kind}", "KA-Conv", _ka_conv(kind), images(3, 8), 3, adapters=(FAST_CONV,))
        for kind in ("RBF", "Fourier", "Poly", "Chebyshev")
    ),
    Model(
        "lkan",
        "LKAN",
        lambda: imported("LKAN", "lkan.models.kan").KAN(kan_layer_version="1"),
        vectors(4),
        2,
        adapters=(LKAN,),
    ),
    Model("fcn-kan", "FCN-KAN", _fcn_kan, vectors(4), 2),
    _kan("vision-kan-ekan", "Vision-KAN", "ekan", "KAN"),
    _kan("kan-autoencoder", "KAN-AutoEncoder", "kan", "KAN", "src/efficient_kan"),
    _kan("x-kanerf-b-spline", "X-KANeRF", "bspine_kan", "BSpline_KAN", "xKANeRF/xKAN"),
    _kan("x-kanerf-chebyshev", "X-KANeRF", "chebyshev_kan", "Chebyshev_KAN", "xKANeRF/xKAN"),
    _kan(
        "x-kanerf-morlet",
        "X-KANeRF",
        "wav_kan",
        "Morlet_KAN",
        "xKANeRF/xKAN",
        adapters=(kanmeta.adapter_for("WavKANLinear", like="wav-kan"),),
    ),
    _kan("bsrbf-kan", "BSRBF_KAN", "bsrbf_kan", "BSRBF_KAN", "models", adapters=(BSRBF,)),
    _kan(
        "bsrbf-efficient",
        "BSRBF_KAN",
        "efficient_kan",
        "EfficientKAN",
        "models",
        adapters=(kanmeta.adapter_for("EfficientKANLinear", like="efficient-kan"),),
    ),
    _kan("bsrbf-fast", "BSRBF_KAN", "fast_kan", "FastKAN", "models"),
    _kan("bsrbf-faster", "BSRBF_KAN", "faster_kan", "FasterKAN", "models", adapters=(FASTER,)),
]
