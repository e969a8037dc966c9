"""torch-conv-kan (IvanDrokin): spline, RBF, wavelet and ReLU convolutions of 1 to 3 dimensions.

phi_goi(x) = base_conv[g][o,i] b(x) + sum_k c[g][o,i,k] B_k(x), at each kernel position
In a weight the k of an input are adjacent, "o (i k)". A group has convolutions of its own, from its
inputs to its outputs. Wavelets take scale and translation of their argument, which the kernel
positions share; ``wavelet_out`` mixes outputs after the edges are summed. A bottleneck has edges
between its n inner channels only: its base branch joins other channels and stays plain.
"""

from kanmeta.adapter import Adapter, Slot

BASE = Slot("base_conv.{g}.weight", "o i ...")
CHOSEN = ("layer_norm.*", "base_activation.*")
"""Norms and base activations are the constructor's choice and never hold coefficients."""


def _wavelets(version: str, path: str, layout: str) -> Adapter:
    """The versions differ in where the weights of the wavelets are."""
    return Adapter(
        name=f"torch-conv-kan/wav-conv-{version}",
        class_names=("WavKANConvNDLayer",),
        slots=(
            BASE,
            Slot(path, layout),
            Slot("wavelet_conv.{g}.scale", "1 o i 1..."),
            Slot("wavelet_conv.{g}.translation", "1 o i 1..."),
        ),
        plain={"wavelet_conv.{g}.wavelet_out.weight": "o o 1..."},
        free=CHOSEN,
        settings=("wavelet_conv.0.wavelet_type",),
        edges="g o i ...",
        rows="eval",
        expands=True,
    )


ADAPTERS = (
    Adapter(
        name="torch-conv-kan/kan-conv",
        class_names=("KANConvNDLayer",),
        slots=(BASE, Slot("spline_conv.{g}.weight", "o (i k) ...")),
        plain={"prelus.{g}.weight": "1"},
        free=CHOSEN,
        edges="g o i ...",
        rows="always",
    ),
    Adapter(
        name="torch-conv-kan/fast-conv",
        class_names=("FastKANConvNDLayer",),
        slots=(BASE, Slot("spline_conv.{g}.weight", "o (i k) ...")),
        plain={"rbf.grid": "k"},
        free=CHOSEN,
        edges="g o i ...",
        rows="always",
    ),
    Adapter(
        name="torch-conv-kan/relu-conv",
        class_names=("ReLUConvNDLayer",),
        slots=(BASE, Slot("relukan_conv.{g}.weight", "o (i k) ...")),
        plain={"phase_low": "1 i k 1...", "phase_high": "1 i k 1..."},
        free=CHOSEN,
        edges="g o i ...",
        rows="always",
    ),
    Adapter(
        name="torch-conv-kan/relu-conv-bottleneck",
        class_names=("BottleNeckReLUConvNDLayer",),
        slots=(Slot("relukan_conv.{g}.weight", "o (i k) ..."),),
        plain={
            "phase_low": "1 i k 1...",
            "phase_high": "1 i k 1...",
            "base_conv.{g}.weight": "all_o all_i ...",
            "inner_proj.{g}.weight": "i all_i 1...",
            "out_proj.{g}.weight": "all_o o 1...",
        },
        free=CHOSEN,
        edges="g o i ...",
        rows="always",
    ),
    _wavelets("base", "wavelet_conv.{g}.wavelet_weights.{o}.weight", "1 i ..."),
    _wavelets("fast", "wavelet_conv.{g}.wavelet_weights.weight", "o i ..."),
    _wavelets("fast-plus-one", "wavelet_conv.{g}.wavelet_weights.weight", "o 1 i ..."),
)
