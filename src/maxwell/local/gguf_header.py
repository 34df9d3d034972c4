"""What a GGUF file says about itself before it is loaded.

The library `gguf` has a reader, but it unpacks the whole vocabulary (8 s and 540 MB for 150,000 tokens); the
few facts needed here stand in the scalar values, and these are quick to walk.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

# GGUF's type number -> struct format of one value, little endian.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9
_LONGEST_TEXT = 1 << 24
_POOLED = {1, 2, 3}  # mean, cls, last; 0 = none
_RANK = 4
_ENCODERS = ("t5encoder", "gemma-embedding")

Scalar = int | float | bool | str


class Header(Struct, frozen=True):
    """What a model is.

    Attributes:
        architecture: The network's family, e.g. "llama".
        context: Context length it was trained for, in tokens; None = not told.
        embedding: Whether it turns text into vectors.
        reranker: Whether it scores documents.
    """

    architecture: str
    context: int | None
    embedding: bool
    reranker: bool


def read_header(path: Path) -> Header:
    """Read a model file's header.

    Raises:
        ValueError: It is not a GGUF file, or one that breaks off; the message says which file and why.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it begins with {magic!r}")
        try:
            values = _values(file)
        except (struct.error, KeyError, UnicodeDecodeError, OverflowError) as error:
            raise ValueError(f"{path} is a damaged GGUF file, or of a version not known here") from error
    architecture = str(values.get("general.architecture", ""))
    context = values.get(f"{architecture}.context_length")
    pooling = values.get(f"{architecture}.pooling_type")
    encoder = "bert" in architecture or architecture in _ENCODERS
    reranker = pooling == _RANK
    return Header(
        architecture=architecture,
        context=context if isinstance(context, int) else None,
        embedding=not reranker and (encoder or pooling in _POOLED),
        reranker=reranker,
    )


def _values(file: BinaryIO) -> dict[str, Scalar]:
    version, _tensors, count = _unpack(file, "IQQ")
    if not 2 <= version <= 3:
        raise KeyError(version)
    values: dict[str, Scalar] = {}
    for _ in range(count):
        key = _text(file)
        (kind,) = _unpack(file, "I")
        if kind == _ARRAY:
            _skip_array(file)
        else:
            values[key] = _text(file) if kind == _STRING else _unpack(file, _SCALARS[kind])[0]
    return values


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > _LONGEST_TEXT:
        raise OverflowError(length)
    return file.read(length).decode()


def _skip_array(file: BinaryIO) -> None:
    kind, count = _unpack(file, "IQ")
    if kind == _STRING:
        for _ in range(count):
            (length,) = _unpack(file, "Q")
            file.seek(length, 1)
    else:
        file.seek(struct.calcsize(_SCALARS[kind]) * count, 1)
