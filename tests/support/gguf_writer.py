"""Writes GGUF files: any metadata, and float32 tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 32
Tensors = Mapping[str, NDArray[np.float32]]


def write_gguf(path: Path, fields: Mapping[str, object], tensors: Tensors | None = None) -> Path:
    """`fields` are texts, ints (u32), NumPy's int32, floats (f32), bools, and lists of one of them."""
    tensors = tensors or {}
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    head += [_text(name) + _typed(value) for name, value in fields.items()]
    at = 0
    for name, array in tensors.items():
        sizes = array.shape[::-1]  # theirs begins with the innermost
        head.append(_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, at))
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    data = b"".join(head)
    data += bytes(-len(data) % ALIGNMENT)
    for array in tensors.values():
        raw = np.ascontiguousarray(array, "<f4").tobytes()
        data += raw + bytes(-len(raw) % ALIGNMENT)
    path.write_bytes(data)
    return path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _typed(value: object) -> bytes:
    kind, data = _packed(value)
    return struct.pack("<I", kind) + data


def _packed(value: object) -> tuple[int, bytes]:
    if isinstance(value, np.int32):
        return 5, struct.pack("<i", value)
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)
        case str():
            return 8, _text(value)
        case [first, *_]:
            kind, _ = _packed(first)
            return 9, struct.pack("<IQ", kind, len(value)) + b"".join(_packed(item)[1] for item in value)
    raise TypeError(value)
