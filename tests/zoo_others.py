"""Models of pykan, efficient-kan, fast-kan and Wav-KAN, and of people who build with them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import kanmeta
from kanmeta import Adapter, Slot
from tests import upstream
from tests.zoo import Model, images, imported, vectors


def _pykan(name: str, width: list[Any], *, prepare: Any = None, **options: Any) -> Model:
    """One of pykan's tutorials. Its layers keep the activations of a step: no deepcopy after it."""

    def make() -> nn.Module:
        from kan import KAN

        model = KAN(width=width, seed=int(torch.randint(1000, ())), auto_save=False, **options)
        if prepare is not None:
            prepare(model)
        return model

    inputs = sum(width[0]) if isinstance(width[0], list) else width[0]
    return Model(
        f"pykan-{name}",
        "",
        make,
        vectors(inputs, 20),
        len(width) - 1,
        order=IN_ORDER,
        copies=False,
    )


def _fix(model: Any) -> None:
    model.fix_symbolic(0, 0, 0, "sin", fit_params_bool=False, verbose=False)
    model.fix_symbolic(0, 1, 1, "x^2", fit_params_bool=False, verbose=False)


IN_ORDER = "registration order"  # they cannot be traced

PYKAN = [
    _pykan("hello", [2, 5, 1], grid=3, k=3),
    _pykan("hello-multkan", [2, [5, 2], 1], grid=3, k=3, base_fun="identity"),
    _pykan("multkan", [2, [3, 2], 1], grid=3, k=3),
    _pykan("arities", [2, [2, 3], 1], grid=3, k=3, mult_arity=[[], [2, 3, 4], []]),
    _pykan("one-arity", [2, [0, 2], [1, 1]], grid=3, k=3, mult_arity=3),
    _pykan("symbolic", [2, 3, 1], grid=3, k=3, prepare=_fix),
    _pykan("classification", [2, 2], grid=3, k=3),
    _pykan("knots", [17, 1, 14], grid=5, k=3),
    _pykan("unsupervised", [18, 1, 1], grid=3, k=3),
    _pykan("sparse", [10, 10, 1], grid=3, k=3, sparse_init=True),
    _pykan("frozen-base", [4, 2, 1, 1], grid=3, k=3, sb_trainable=False),
    _pykan(
        "frozen-spline-scale", [2, 3, 1], grid=3, k=2, sp_trainable=False, affine_trainable=True
    ),
    _pykan("linear", [3, 2, 2], grid=3, k=1, base_fun="zero", noise_scale=0.3),
]


def _kan_gpt(kind: str, layers: int, **about: Any) -> Model:
    def make() -> nn.Module:
        module = imported("kan-gpt", "kan_gpt.model")
        module.settings.kan.KAN_IMPLEMENTATION = kind  # the loss of the early pykan asks for it
        gpt = module.GPT
        config = gpt.get_default_config()
        config.model_type = None
        config.n_layer, config.n_head, config.n_embd = 2, 2, 4
        config.vocab_size, config.block_size = 8, 6
        config.kan_implementation = kind
        return gpt(config)

    return Model(f"kan-gpt-{kind}", "kan-gpt", make, _tokens, layers, order=IN_ORDER, **about)


def _tokens() -> tuple[torch.Tensor, ...]:
    return torch.randint(8, (2, 6)), torch.randint(8, (2, 6))


def _kansformer() -> nn.Module:
    gpt = imported("kansformers", "model").GPT
    config = gpt.get_default_config()
    config.model_type = None
    config.n_layer, config.n_head, config.n_embd = 2, 2, 4
    config.vocab_size, config.block_size = 8, 6
    return gpt(config)


def _convkan() -> nn.Module:
    resnet = imported("convkan", "convkan.kanresnet")  # its networks start at 64 channels
    layer = resnet.ConvKAN(4, 6, kernel_size=1, stride=2)
    return nn.Sequential(
        resnet.BasicBlock(4, 4), resnet.BasicBlock(4, 6, stride=2, downsample=layer)
    )


def _images_and_times() -> tuple[torch.Tensor, ...]:
    return torch.rand(2, 3, 16, 16) * 2 - 1, torch.randint(10, (2,))


def _diffusion(module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(imported("U-KAN", module, "Diffusion_UKAN/Diffusion"), name)(
        T=10, ch=64, num_res_blocks=1, dropout=0.1, **options
    )


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


def _attention_inputs() -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(1, 12, 8),
        torch.randn(1, 24, 8),
        torch.randn(1, 24, 8),
        torch.rand(1, 12, 24),
    )


LKAN = Adapter(
    name="lkan",
    class_names=("KANLinear",),
    slots=(Slot("coeff", "o i k", scaled_by="scale_spline"), Slot("scale_base", "o i")),
    plain={"grid": "i t"},
    optional_plain={"bias": "o"},
)

FASTER = Adapter(
    name="faster-kan",
    class_names=("FasterKANLayer",),
    slots=(Slot("spline_linear.weight", "o (i k)"),),
    free=("layernorm.*", "rbf.*"),
    sizes=lambda layer: {"i": layer.layernorm.normalized_shape[0]},
)

BSRBF = Adapter(
    name="bsrbf",
    class_names=("BSRBF_KANLayer",),
    slots=(Slot("base_weight", "o i"), Slot("spline_weight", "o (i k)")),
    plain={"grid": "i t"},
    free=("layernorm.*", "rbf.*"),
)


def _of(repository: str, module: str, name: str, *below: str, **options: Any) -> Any:
    arguments = options.pop("arguments", ())
    return lambda: getattr(imported(repository, module, *below), name)(*arguments, **options)


MODELS = [
    *PYKAN,
    Model(
        "efficient-kan",
        "efficient-kan",
        lambda: upstream.efficient_kan().KAN([9, 6, 4]),
        vectors(9),
        2,
    ),
    Model("fast-kan", "fast-kan", lambda: upstream.fast_kan().FastKAN([9, 6, 4]), vectors(9), 2),
    Model(
        "fast-kan-attention",
        "fast-kan",
        lambda: upstream.fast_kan().AttentionWithFastKANTransform(8, 8, 8, 4, 2, gating=True),
        _attention_inputs,
        5,
        order=IN_ORDER,
    ),
    *(
        Model(
            f"wav-kan-{kind}",
            "Wav-KAN",
            lambda kind=kind: upstream.wav_kan().KAN([9, 6, 4], wavelet_type=kind),
            vectors(9),
            2,
        )
        for kind in ("mexican_hat", "morlet", "dog", "meyer", "shannon")
    ),
    _kan_gpt("EFFICIENT_KAN", 9),
    _kan_gpt("ORIGINAL_KAN", 9, copies=False),
    Model("kansformers-gpt", "kansformers", _kansformer, _tokens, 9, order=IN_ORDER),
    Model(
        "u-kan",
        "U-KAN",
        _of(
            "U-KAN",
            "archs",
            "UKAN",
            "Seg_UKAN",
            num_classes=2,
            img_size=32,
            embed_dims=[16, 20, 24],
        ),
        images(),
        12,
    ),
    Model(
        "u-kan-diffusion",
        "U-KAN",
        _diffusion("Model_UKAN_Hybrid", "UKan_Hybrid", ch_mult=[1, 4], attn=[]),
        _images_and_times,
        3,
    ),
    Model("convkan-basic-blocks", "convkan", _convkan, images(4, 8), 5),
    *(
        Model(f"ka-conv-{kind}", "KA-Conv", _ka_conv(kind), images(3, 8), 3, adapters=(FAST_CONV,))
        for kind in ("RBF", "Fourier", "Poly", "Chebyshev")
    ),
    Model(
        "vision-kan",
        "Vision-KAN",
        _of(
            "Vision-KAN",
            "models_kan",
            "VisionKAN",
            img_size=16,
            patch_size=8,
            embed_dim=12,
            depth=2,
            num_heads=4,
            hdim_kan=6,
            num_classes=4,
        ),
        images(3, 16),
        4,
        adapters=(FASTER,),
    ),
    Model(
        "vision-kan-ekan",
        "Vision-KAN",
        _of("Vision-KAN", "ekan", "KAN", arguments=([6, 5, 4],)),
        vectors(6),
        2,
    ),
    Model(
        "ckan-small",
        "Convolutional-KANs",
        _of(
            "Convolutional-KANs",
            "architectures_28x28.KKAN",
            "KKAN_Small",
            "",
            "kan_convolutional",
            grid_size=3,
        ),
        images(1, 28),
        31,
        order=IN_ORDER,
    ),
    Model(
        "ckan-mlp",
        "Convolutional-KANs",
        _of(
            "Convolutional-KANs",
            "architectures_28x28.KANConvs_MLP",
            "KANC_MLP",
            "",
            "kan_convolutional",
            grid_size=3,
        ),
        images(1, 28),
        30,
        order=IN_ORDER,
    ),
    Model(
        "ckan-normal-convs",
        "Convolutional-KANs",
        _of(
            "Convolutional-KANs",
            "architectures_28x28.conv_and_kan",
            "NormalConvsKAN",
            "",
            "kan_convolutional",
        ),
        images(1, 28),
        1,
    ),
    Model(
        "lkan",
        "LKAN",
        _of("LKAN", "lkan.models.kan", "KAN", kan_layer_version="1"),
        vectors(4),
        2,
        adapters=(LKAN,),
    ),
    *(
        Model(
            f"x-kanerf-{name}",
            "X-KANeRF",
            _of("X-KANeRF", module, name, "xKANeRF/xKAN", arguments=([6, 5, 4],)),
            vectors(6),
            2,
            adapters=adapters,
        )
        for module, name, adapters in (
            ("bspine_kan", "BSpline_KAN", ()),
            ("chebyshev_kan", "Chebyshev_KAN", ()),
            ("wav_kan", "Morlet_KAN", (kanmeta.adapter_for("WavKANLinear", like="wav-kan"),)),
        )
    ),
    Model(
        "bsrbf-kan",
        "BSRBF_KAN",
        _of("BSRBF_KAN", "bsrbf_kan", "BSRBF_KAN", "models", arguments=([6, 5, 4],)),
        vectors(6),
        2,
        adapters=(BSRBF,),
    ),
    Model(
        "bsrbf-efficient",
        "BSRBF_KAN",
        _of("BSRBF_KAN", "efficient_kan", "EfficientKAN", "models", arguments=([6, 5, 4],)),
        vectors(6),
        2,
        adapters=(kanmeta.adapter_for("EfficientKANLinear", like="efficient-kan"),),
    ),
    Model(
        "bsrbf-fast",
        "BSRBF_KAN",
        _of("BSRBF_KAN", "fast_kan", "FastKAN", "models", arguments=([6, 5, 4],)),
        vectors(6),
        2,
    ),
    Model(
        "bsrbf-faster",
        "BSRBF_KAN",
        _of("BSRBF_KAN", "faster_kan", "FasterKAN", "models", arguments=([6, 5, 4],)),
        vectors(6),
        2,
        adapters=(FASTER,),
    ),
    Model(
        "fcn-kan",
        "FCN-KAN",
        lambda: nn.Sequential(
            imported("FCN-KAN", "kan_layer").KANLayer(4, 3),
            imported("FCN-KAN", "kan_layer").KANLayer(3, 2),
        ),
        vectors(4),
        2,
    ),
    Model(
        "kan-autoencoder-efficient",
        "KAN-AutoEncoder",
        _of("KAN-AutoEncoder", "kan", "KAN", "src/efficient_kan", arguments=([6, 5, 4],)),
        vectors(6),
        2,
    ),
]
