"""Models of torch-conv-kan: classifiers, segmentation, mixtures of experts, attention."""

from typing import Any

import torch

from tests import upstream
from tests.zoo import IN_ORDER, Model, images, vectors

MOE = {"num_experts": 3, "k": 2}
MODEL_FIELDS = ("inputs", "skipped", "order", "edge", "idle", "copies", "why")
SHOWN = ("groups", "last_attention", "mixer_type", "use_bottleneck", "head_type", "wav_version")


def _model(
    function: str, layers: int, *arguments: Any, module: str = "models", **options: Any
) -> Model:
    """A function or class of torch-conv-kan; keywords that Model does not have go to it."""
    about = {key: options.pop(key) for key in MODEL_FIELDS if key in options}
    if "num_experts" in options:
        # Experts that no sample was sent to; upstream's dispatch depends on data.
        about = {"idle": ("*experts*",), "order": IN_ORDER} | about
    shown = "".join(f"-{key}={value}" for key, value in options.items() if key in SHOWN)
    return Model(
        f"torch-conv-kan-{function}{shown}",
        "torch-conv-kan",
        lambda: getattr(upstream.torch_conv_kan(module), function)(*arguments, **options),
        layers=layers,
        **{"inputs": images()} | about,
    )


def _classifier(function: str, layers: int, **options: Any) -> Model:
    return _model(function, layers, 3, 4, **options)


def _vgg(function: str, layers: int, **options: Any) -> Model:
    return _classifier(function, layers, expected_feature_shape=(1, 1), **options)


def _dense(function: str, layers: int, **options: Any) -> Model:
    return _classifier(function, layers, growth_rate=4, num_init_features=8, **options)


def _unet(layers: int, mixer: str, bottleneck: bool, **options: Any) -> Model:
    options |= {"mixer_type": mixer, "use_bottleneck": bottleneck}
    return _classifier("UKAGNet", layers, unet_depth=3, **options)


def _baseline(function: str, layers: int, **options: Any) -> Model:
    sizes = [4, 4, 4, 4, 8, 8, 8, 8] if function.startswith("Eight") else [4, 4, 8, 8]
    return _model(function, layers, sizes, num_classes=4, input_channels=3, **options)


def _layer(
    function: str, layers: int, shape: tuple[int, ...], *arguments: Any, **options: Any
) -> Model:
    return _model(
        function,
        layers,
        *arguments,
        module="kan_convs",
        inputs=lambda: (torch.rand(2, *shape) * 2 - 1,),
        order=IN_ORDER,
        **options,
    )


FOCAL = {
    "order": IN_ORDER,
    "copies": False,
    "why": "depthwise KAGNConvV2 is refused; the layer keeps its gates of the last step",
}

RESIDUAL = [
    _classifier("reskanet_18x32p", 20, groups=4),
    _classifier("fast_reskanet_18x32p", 20),
    _classifier("reskalnet_18x32p", 20),
    _classifier("reskacnet_18x32p", 20, groups=4),
    _classifier("reskagnet_18x32p", 20, hidden_layer_dim=16),
    _classifier("reskagnet18", 20, inputs=images(size=64)),
    _classifier("reskagnet50", 53, inputs=images(size=64)),
    _classifier("reskagnet_bn50", 53, inputs=images(size=64)),
    _classifier("reskagnetbn_18x32p", 20),
    _classifier("reskagnet_34x32p", 36),
    _classifier("moe_reskalnet_18x64p", 37, **MOE),
    _classifier("moe_reskalnet_50x64p", 85, **MOE),
    _classifier("reskagnetbn_moe_18x32p", 37, **MOE),
]

VGG = [
    _vgg("vggkan", 8, groups=4, dropout=0.1, l1_decay=0.1),
    _vgg("fast_vggkan", 9, head_type="HiddenKAN"),
    _vgg("vggkaln", 9, head_type="KAN"),
    _vgg("vggkacn", 10, vgg_type="VGG13"),
    _vgg("vggkagn", 10, last_attention=True, sa_inner_projection=8, order=IN_ORDER),
    _vgg("vggkagn_bn", 10, last_attention=True, order=IN_ORDER),
    _vgg("vggkagn", 15, vgg_type="VGG11sa", head_type="KANtryoshka", order=IN_ORDER),
    _vgg("vgg_wav_kan", 9, head_type="KAN"),
    _vgg("vgg_wav_kan", 8, wav_version="fast_plus_one"),
    _vgg("vgg_wav_kan", 8, wav_version="base", edge="pair"),
    _vgg("moe_vggkagn", 22, **MOE),
    _vgg("moe_vggkagn_bn", 22, **MOE),
]

DENSE = [  # the tiny ones checkpoint their activations, which cannot be traced
    _dense("tiny_densekanet", 32, order=IN_ORDER),
    _dense("tiny_fast_densekanet", 32, order=IN_ORDER),
    _dense("tiny_densekalnet", 32, groups=4, order=IN_ORDER),
    _dense("tiny_densekagnet", 32, l1_decay=0.1, order=IN_ORDER),
    _dense("tiny_densekacnet", 32, order=IN_ORDER),
    _dense("tiny_densekagnet_bn", 32, order=IN_ORDER),
    _dense("tiny_densekagnet_moebn", 62, **MOE),
    _dense("densekagnet121", 117, inputs=images(size=64)),
    _dense("densekanet121", 117, use_first_maxpool=False),
]

U_SHAPED = [
    _classifier("ukanet_18", 39),
    _classifier("fast_ukanet_18", 39, groups=4),
    _classifier("ukalnet_18", 39),
    _classifier("ukacnet_18", 39),
    _classifier("ukagnet_18", 39, groups=4),
    _classifier("ukagnetnb_18", 39),
    *(_unet(10, "conv", bottleneck) for bottleneck in (True, False)),
    *(_unet(16, "self-att", bottleneck, order=IN_ORDER) for bottleneck in (True, False)),
    *(_unet(16, "focal", bottleneck, skipped=4, **FOCAL) for bottleneck in (True, False)),
    # Not u2kacnet: its gradients are 1e18 from the start, so that Adam's squares overflow.
    _classifier("u2kagnet_small", 112, inputs=images(size=64)),
    _classifier("u2kanet_small", 112, inputs=images(size=64)),
    _classifier("fast_u2kanet_small", 112, inputs=images(size=64)),
    _classifier("u2kalnet_small", 112, inputs=images(size=64)),
    _classifier("u2kagnet_bn_small", 112, inputs=images(size=64)),
]


def _rdnet(layers: int, **options: Any) -> Model:
    return _model(
        "KAGNRDNet",
        layers,
        16,
        (8, 8),
        (2, 1),
        1,
        module="models.kan_rdnet",
        num_classes=4,
        is_downsample_block=(None, True),
        order=IN_ORDER,
        skipped=3,
        why="a depthwise KAGNConvV2 in each block is refused",
        **options,
    )


BASELINES = [
    _rdnet(8),
    _rdnet(17, post_block_attention=True, is_bottleneck=False, block_type="BlockESE"),
    _baseline("SimpleConvKAN", 5, l1_penalty=0.1),
    _baseline("SimpleConvKALN", 5, groups=4),
    _baseline("SimpleConvKACN", 5),
    _baseline("SimpleConvKAGN", 5, dropout=0.1),
    _baseline("SimpleFastConvKAN", 5),
    _baseline("SimpleConvWavKAN", 5),
    _baseline("SimpleMoEConvKAGNBN", 13, **MOE),
    _baseline("EightSimpleConvKAN", 9, groups=4),
    _baseline("EightSimpleConvKALN", 9),
    _baseline("EightSimpleConvKACN", 9),
    _baseline("EightSimpleConvKAGN", 9),
    _baseline("EightSimpleFastConvKAN", 9),
    _baseline("EightSimpleConvWavKAN", 9, edge="pair"),
    _baseline("EightSimpleMoEConvKAGNBN", 25, **MOE),
]

LAYERS = [
    _layer("SelfKAGNtention1D", 3, (8, 6), 8, 4, 3, padding=1),
    _layer("SelfKAGNtention3D", 3, (8, 3, 3, 3), 8, None, 3, padding=1, groups=4),
    _layer("BottleNeckSelfKAGNtention2D", 3, (8, 4, 4), 8, 4, 3, padding=1),
    _layer("SelfReLUKANtention2D", 3, (8, 4, 4), 8, 4, 3, padding=1),
    _layer("BottleNeckSelfReLUKANtention1D", 3, (8, 6), 8, 4, 3, padding=1),
    _layer("RoPEBottleNeckSelfKAGNtention2D", 3, (8, 4, 4), 8, 8, 3, padding=1),
    _model(
        "KAGNFocalModulation2D",
        3,
        8,
        3,
        2,
        2,
        module="kan_convs",
        inputs=images(8, 8),
        skipped=2,
        **FOCAL,
    ),
    _model(
        "BottleNeckKAGNFocalModulation1D",
        3,
        8,
        3,
        2,
        2,
        module="kan_convs",
        inputs=lambda: (torch.rand(2, 8, 8) * 2 - 1,),
        skipped=2,
        **FOCAL,
    ),
    _layer("MoEFastKANConv2DLayer", 3, (4, 5, 5), 4, 4, **MOE),
    _layer("MoEKACNConv1DLayer", 3, (4, 5), 4, 4, **MOE),
    _layer("MoEWavKANConv2DLayer", 3, (4, 5, 5), 4, 4, **MOE),
    _layer("MoEFullBottleneckKAGNConv2DLayer", 3, (4, 5, 5), 4, 4, **MOE),
    _layer("MoEKANConv3DLayer", 3, (4, 3, 3, 3), 4, 4, **MOE),
]

FULLY_CONNECTED = [
    _model(name, 2, [6, 8, 4], module="kans", inputs=vectors(6), l1_decay=0.1, dropout=0.1)
    for name in ("KAN", "FastKAN", "KALN", "KACN", "KAGN", "KAJN", "WavKAN", "ReLUKAN")
] + [_model("BottleNeckKAGN", 2, [6, 8, 4], module="kans", inputs=vectors(6), min_internal=2)]

MODELS = [*RESIDUAL, *VGG, *DENSE, *U_SHAPED, *BASELINES, *LAYERS, *FULLY_CONNECTED]
