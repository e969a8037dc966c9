"""A checkpoint in as few bytes as possible: the safetensors content, compressed, inside another.

The outer file is a safetensors file with one tensor of bytes, so that it is recognised and checked
like any other. Its content is a list of pieces: method (1 byte), compressed length (4 bytes), data.
The first piece is the inner header, the others are the inner tensors, those of codes one by one:
each is compressed with what suits it best. The last four bytes are the CRC-32 of the inner content.
"""

import itertools
import json
import lzma
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

from kanmeta.errors import CorruptCheckpointError

__all__ = ["NAME", "check_size", "content", "inner_header", "write"]

NAME = "archive"
"""Of the outer file's only tensor."""

_LARGEST_HEADER = 16_000_000  # bytes
_TIGHTEST = 200  # times that what is compressed may be smaller; headers of many layers are
_ANY_FILE = 1 << 24  # bytes that any file may unpack to, however small it is
_LZMA: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": lc, "lp": 0, "pb": 0} for lc in (0, 4)
]


def write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path, header: str) -> None:
    """Write ``tensors`` and ``metadata`` as a compressed file.

    Args:
        tensors, metadata: of the inner file.
        path: the file.
        header: what the outer file's metadata say under ``"kanmeta"``.
    """
    inner = save(tensors, metadata)
    length = 8 + int.from_bytes(inner[:8], "little")
    entries = json.loads(inner[8:length])
    starts = {length + e["data_offsets"][0] for n, e in entries.items() if n.endswith(".codes")}
    cuts = [0, *sorted({length, *starts}), len(inner)]
    tightest = math.inf if len(inner) <= _ANY_FILE else _TIGHTEST
    pieces = [_compress(inner[a:b], tightest) for a, b in itertools.pairwise(cuts) if a < b]
    raw = b"".join([*pieces, zlib.crc32(inner).to_bytes(4, "little")])
    packed = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    save_file({NAME: packed}, path, {"kanmeta": header})


def inner_header(path: Path, start: int) -> bytes:
    """Return the inner file's header, its length included; nothing more is decompressed.

    Args:
        path: the file.
        start: where its tensor begins.

    Raises:
        CorruptCheckpointError: there is none.
    """
    with path.open("rb") as file:
        file.seek(start)
        raw = file.read()
    head = _Pieces(raw).take(min(_LARGEST_HEADER, (1 << 16) + _TIGHTEST * len(raw)))
    if len(head) < 10 or len(head) != 8 + int.from_bytes(head[:8], "little"):
        raise CorruptCheckpointError(f"{path} has a damaged archive: its header is incomplete")
    return head


def check_size(path: Path, size: int) -> None:
    """Raise CorruptCheckpointError if a file is too small to hold ``size`` bytes.

    A header may say that a meta-learner is of any size, and zeros compress nearly without bound.
    :func:`write` does not let them, where there are many.
    """
    most = max(_ANY_FILE, _TIGHTEST * path.stat().st_size)
    if size > most:
        raise CorruptCheckpointError(
            f"{path} has a damaged archive: it would unpack to {size} bytes, and a file of its "
            f"size to {most} at most"
        )


def content(path: Path, start: int, size: int) -> dict[str, Tensor]:
    """Return the inner tensors.

    Args:
        path, start: see :func:`inner_header`.
        size: bytes of the inner file, as the model says; no more are decompressed.

    Raises:
        CorruptCheckpointError: there are more or fewer bytes, or others than were written.
    """
    with path.open("rb") as file:
        file.seek(start)
        raw = file.read()
    pieces, parts, rest = _Pieces(raw[:-4]), [], size
    while rest >= 0 and pieces.left:
        parts.append(pieces.take(rest))
        rest -= len(parts[-1])
    inner, check = b"".join(parts), raw[-4:]
    del parts, pieces, raw  # as large as the file and as what is in it
    if rest != 0 or zlib.crc32(inner) != int.from_bytes(check, "little"):
        raise CorruptCheckpointError(
            f"{path} has a damaged archive: expected {size} bytes in it, found "
            f"{len(inner)}{' others' if rest == 0 else ''}"
        )
    return dict(load(inner))


class _Pieces:
    """Compressed pieces, one after the other."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    @property
    def left(self) -> bool:
        """Whether there are more."""
        return self._at < len(self._raw)

    def take(self, most: int) -> bytes:
        """Decompress the next piece, of ``most`` bytes at most.

        Raises:
            CorruptCheckpointError: it is damaged, empty or longer.
        """
        start = self._at + 5
        head = self._raw[self._at : start]
        length = int.from_bytes(head[1:], "little")
        data = self._raw[start : start + length]
        self._at = start + length
        try:
            if len(data) != length or not data:
                raise ValueError(f"a piece of {length} bytes has {len(data)}")
            found = _decompress(head[0], data, most)
            if not found:
                raise ValueError("a piece holds nothing")
            return found
        except (ValueError, zlib.error, lzma.LZMAError, EOFError) as error:
            raise CorruptCheckpointError(f"the file has a damaged archive: {error}") from error


def _compress(data: bytes, tightest: float) -> bytes:
    """Smallest form of ``data``, with its method and length in front.

    One that is more than ``tightest`` times smaller is not used.
    """
    forms = [(0, data)]
    for method, strategy in ((1, zlib.Z_DEFAULT_STRATEGY), (1, zlib.Z_HUFFMAN_ONLY)):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        forms.append((method, deflate.compress(data) + deflate.flush()))
    for method, options in enumerate(_LZMA, start=2):
        made = lzma.compress(data, lzma.FORMAT_RAW, filters=[options])
        forms.append((method, made))
    forms = [form for form in forms if len(data) <= tightest * len(form[1])]
    method, smallest = min(forms, key=lambda form: len(form[1]))
    return bytes([method]) + len(smallest).to_bytes(4, "little") + smallest


def _decompress(method: int, data: bytes, most: int) -> bytes:
    if method == 0:
        result, complete = data, len(data) <= most
    elif method == 1:
        inflate = zlib.decompressobj(-15)
        result = inflate.decompress(data, most + 1)
        complete = inflate.eof
    elif method - 2 in range(len(_LZMA)):
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_LZMA[method - 2]])
        result = decoder.decompress(data, most + 1)
        complete = len(result) <= most
    else:
        raise ValueError(f"unknown method {method}")
    if len(result) > most or not complete:
        raise ValueError(f"a piece is incomplete, or longer than the {most} bytes expected")
    return result
