"""Models of pykan, efficient-kan, fast-kan and Wav-KAN: their tutorials and examples."""

from typing import Any

import torch
from torch import nn

from tests import upstream
from tests.zoo import IN_ORDER, Model, vectors


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


def _attention_inputs() -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(1, 12, 8),
        torch.randn(1, 24, 8),
        torch.randn(1, 24, 8),
        torch.rand(1, 12, 24),
    )


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
]
