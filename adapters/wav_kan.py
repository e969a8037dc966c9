"""Wav-KAN (zavareh1): ``KANLinear``. All edge tensors are output-major.

phi_oi(x) = wavelet_weights[o,i] psi((x - translation[o,i]) / scale[o,i]), psi by wavelet_type
``weight1`` is dead: the forward multiplies x with it and drops the product. torch-conv-kan's
``WavKANLayer`` has the same tensors and uses it; only the class name tells them apart.
"""

from kanmeta.adapter import Adapter, Slot

ADAPTERS = (
    Adapter(
        name="wav-kan",
        class_names=("KANLinear",),
        slots=(
            Slot("scale", "o i"),
            Slot("translation", "o i"),
            Slot("wavelet_weights", "o i"),
        ),
        optional_plain={"weight1": "o i"},
        dead={"weight1": "Wav-KAN multiplies x with it and drops the product"},
        free=("bn.*", "base_activation.*"),
        settings=("wavelet_type",),
        rows="eval",
        expands=True,
    ),
)
