"""Prompts of a few bits: tied while training, and stored as codes with a codebook.

Every layer has a codebook for each number of a prompt: the layer of most edges has ``2**bits``
entries, smaller ones often more (:func:`kanmeta.codebook.layer_levels`), whose codes take 8 bits
before compression.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kanmeta.access import complete_layers
from kanmeta.codebook import BITS, layer_levels, pack, packed_bytes, quantise, unpack
from kanmeta.errors import CheckpointError, CorruptCheckpointError, PlanError

__all__ = ["check_bits", "decode", "decoded_shapes", "encode", "few_bit_prompts", "prompt_widths"]

_ENTRIES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of a codebook

Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def few_bit_prompts(model: nn.Module, bits: int) -> Iterator[nn.Module]:
    """Quantise the prompts in place, and train codebooks instead of prompts within the context.

    >>> model = kanmeta.convert(KAN([64, 32, 10]))
    >>> with kanmeta.few_bit_prompts(model, bits=4):        # any loss, any optimiser made within
    ...     optimiser = torch.optim.Adam(model.parameters())
    ...     model(torch.ones(2, 64)).sum().backward()
    ...     optimiser.step()
    >>> kanmeta.save(model, "kan.safetensors", prompt_bits=4)           # loses nothing
    >>> len(kanmeta.prompts(model)["layers.0"].unique())
    16

    Prompts with one code are equal and get the same gradient, the sum over all of them, which is
    the gradient of their entry in the codebook. So every optimiser that treats numbers alike
    (SGD, Adam, AdamW) keeps them equal, and ``save`` of the same layers finds the trained codebook
    again.

    Args:
        model: a converted model.
        bits: 2, 3, 4 or 8, of the layer of most edges; smaller ones may have more entries.

    Raises:
        NothingToConvertError: ``model`` is not converted.
        PlanError: ``bits`` is another number, or a prompt is not finite.
    """
    if bits not in BITS:
        raise PlanError(f"bits={bits!r}: expected one of {', '.join(map(str, BITS))}")
    layers = complete_layers(model)
    new = []
    levels = _levels([b.prompts for b in layers.values()], bits)
    for (name, binding), most in zip(layers.items(), levels, strict=True):
        if not bool(binding.prompts.isfinite().all()):
            raise PlanError(f"prompts of {name or '(root)'} are not finite: training has diverged")
        codebooks, codes = _quantised(binding.prompts, most)
        new.append((binding.prompts, codebooks, codes))
    with ExitStack() as stack:
        for prompts, codebooks, codes in new:
            with torch.no_grad():
                prompts.copy_(_looked_up(codebooks, codes).view(prompts.shape))
            if prompts.requires_grad:
                tie = _tied(codes, codebooks.shape[1])
                stack.callback(prompts.register_hook(tie).remove)  # type: ignore[no-untyped-call]
        yield model


def _tied(codes: Tensor, levels: int) -> Any:
    """Gradient hook: every number gets the sum over those with its code. ``codes``: (dim_z, E)."""
    places = (codes.long() + levels * torch.arange(len(codes), device=codes.device)[:, None]).T

    def tie(grad: Tensor) -> Tensor:
        sums = grad.new_zeros(places.shape[1] * levels)
        sums.index_add_(0, places.flatten(), grad.reshape(-1))
        return sums[places.flatten()].view(grad.shape)

    return tie


def _levels(prompts: Iterable[Tensor], bits: int) -> list[int]:
    """Entries of the codebooks of each layer."""
    return layer_levels(2**bits, [z.numel() // z.shape[-1] for z in prompts])


def _quantised(prompts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Codebooks ``(dim_z, levels <= most)``, short ones filled up, and codes ``(dim_z, E)``."""
    columns = prompts.detach().reshape(-1, prompts.shape[-1]).T.contiguous()
    found = [quantise(column, most) for column in columns]
    levels = max(len(book) for book, _ in found)
    books = [torch.cat([b, b[-1:].expand(levels - len(b))]) for b, _ in found]
    return torch.stack(books), torch.stack([codes for _, codes in found])


def _looked_up(codebooks: Tensor, codes: Tensor) -> Tensor:
    """Prompts ``(E, dim_z)``."""
    return codebooks.gather(1, codes.to(codebooks.device, torch.long)).T.contiguous()


# --- storage ------------------------------------------------------------------------------------


def check_bits(bits: object) -> None:
    """Raise CheckpointError if prompts cannot be stored in ``bits`` bits."""
    allowed = (*BITS, 16)
    if bits is not None and (type(bits) is not int or bits not in allowed):
        raise CheckpointError(
            f"prompt_bits={bits!r}: expected one of {', '.join(map(str, allowed))}, or None"
        )


def prompt_widths(prompts: Sequence[Tensor], bits: int | None) -> list[float]:
    """Bits that tell the numbers of each layer's prompts apart in a file.

    Args:
        prompts: of each layer, ``(*edge_shape, dim_z)``.
        bits: see :func:`kanmeta.save`.
    """
    if bits not in BITS:
        return [bits or 8.0 * z.element_size() for z in prompts]
    return [math.log2(levels) for levels in _levels(prompts, bits)]


def encode(
    tensors: dict[str, Tensor], names: Mapping[str, Tensor], bits: int, dtype: torch.dtype | None
) -> None:
    """Replace prompts among ``tensors``, in place, by codes and codebooks, or by 16-bit numbers.

    Args:
        tensors: what is stored.
        names: stored name -> prompts as they are in the model.
        bits: see :func:`kanmeta.save`.
        dtype: of the codebooks.

    Raises:
        CheckpointError: prompts are not finite, or too large for 16 bits.
    """
    levels = _levels(names.values(), min(bits, 8))
    for (name, prompts), most in zip(names.items(), levels, strict=True):
        narrow = prompts.detach().cpu().to(torch.float16 if bits == 16 else prompts.dtype)
        if not bool(narrow.isfinite().all()):
            raise CheckpointError(
                f"{name} has numbers that are not finite in {narrow.dtype}; they cannot be stored "
                f"in {bits} bits. Use prompt_bits=8, or None if training has diverged"
            )
        if bits == 16:
            tensors[name] = narrow
            continue
        codebooks, codes = _quantised(narrow, most)
        del tensors[name]
        tensors[f"{name}.codebook"] = codebooks.to(dtype or prompts.dtype)
        width = _width(codebooks.shape[1], bits)
        tensors[f"{name}.codes"] = torch.cat([pack(c, width) for c in codes])


def decoded_shapes(header: Mapping[str, Any], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that :func:`decode` will give.

    Raises:
        CorruptCheckpointError: codes or codebooks do not fit the layer's edges.
    """
    found = dict(shapes)
    for name, edges, dim_z in _coded(header):
        codes, book = found.pop(f"{name}.codes", ()), found.pop(f"{name}.codebook", ())
        most = 2 ** (BITS[-1] if header["format"] >= 3 else header["prompt_bits"])
        if len(book) != 2 or book[0] != dim_z or not 1 <= book[1] <= most:
            raise CorruptCheckpointError(
                f"{name}.codebook: expected ({dim_z}, 1 to {most}), found {book}"
            )
        width = _width(book[1], header["prompt_bits"])
        expected = dim_z * packed_bytes(_product(edges), width)
        if codes != (expected,):
            raise CorruptCheckpointError(f"{name}.codes: expected ({expected},), found {codes}")
        found[name] = (*edges, dim_z)
    return found


def decode(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Replace codes and codebooks among ``tensors``, in place, by prompts.

    Raises:
        CorruptCheckpointError: a code is beyond its codebook, or a tensor has another type.
    """
    for name, edges, dim_z in _coded(header):
        packed, books = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.codebook")
        if packed.dtype != torch.uint8 or books.dtype not in _ENTRIES:
            raise CorruptCheckpointError(
                f"{name} has codes of {packed.dtype} and a codebook of {books.dtype}"
            )
        if not bool(books.isfinite().all()):
            raise CorruptCheckpointError(f"{name}.codebook has numbers that are not finite")
        number = _product(edges)
        width = _width(books.shape[1], header["prompt_bits"])
        codes = torch.stack([unpack(p, width, number) for p in packed.view(dim_z, -1)])
        if int(codes.max()) >= books.shape[1]:
            raise CorruptCheckpointError(
                f"{name}.codes go up to {int(codes.max())}; "
                f"the codebook has {books.shape[1]} entries"
            )
        tensors[name] = _looked_up(books, codes).view(*edges, dim_z)


def _coded(header: Mapping[str, Any]) -> Iterator[tuple[str, list[int], int]]:
    """Name of the prompts, edges and dim_z of each layer whose prompts are stored as codes."""
    if header.get("prompt_bits") is None:
        return
    for layer in header["layers"]:
        name = f"{layer['name']}.prompts" if layer["name"] else "prompts"
        dim_z = header["meta_learners"][layer["meta_learner"]]["dim_z"]
        yield name, layer["shape"][:-1], dim_z


def _width(levels: int, bits: int) -> int:
    """Bits of a packed code: ``bits``, or 8 where a codebook is longer than they reach."""
    return bits if levels <= 2**bits else BITS[-1]


def _product(numbers: list[int]) -> int:
    return int(torch.Size(numbers).numel())
