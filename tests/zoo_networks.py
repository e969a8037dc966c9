"""Networks that people build with KAN layers: language models, vision, segmentation, diffusion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kanmeta import Adapter, Slot
from tests.zoo import IN_ORDER, Model, images, imported


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


FASTER = Adapter(
    name="faster-kan",
    class_names=("FasterKANLayer",),
    slots=(Slot("spline_linear.weight", "o (i k)"),),
    free=("layernorm.*", "rbf.*"),
    sizes=lambda layer: {"i": layer.layernorm.normalized_shape[0]},
)


def _of(repository: str, module: str, name: str, *below: str, **options: Any) -> Any:
    arguments = options.pop("arguments", ())
    return lambda: getattr(imported(repository, module, *below), name)(*arguments, **options)


MODELS = [
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
        "kanlightning-kanformer",
        "KanLightning",
        _of(
            "KanLightning",
            "KANFormer.KANFormer",
            "KANFormer",
            arguments=(8, 8, 2, 4, 6, 2, 1, 2, 6, 3),
        ),
        lambda: (torch.randint(8, (2, 6)),),
        20,
        order=IN_ORDER,
        idle=("*.feedforward.*", "*.experts.*"),
        why="each block has a feed-forward network that is never used",
    ),
]
