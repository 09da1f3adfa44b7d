"""Which other files an ONNX file names: its tensors may lie outside of it.

The file is protobuf, and its few messages that can hold a tensor are walked here by their field numbers,
without onnx and without reading the tensors themselves: a field of no interest is stepped over.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3 (ModelProto, GraphProto, TensorProto)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modelnet_p2p.digest import BadArtifact

MAX_DEPTH = 64  # graphs inside of graphs: loops and branches
MAX_FIELDS = 1 << 20  # of all messages that are entered: the largest graphs have some ten thousand nodes
MAX_NAME_BYTES = 1024

# By field number: the message that lies there; each knows of those that may hold a tensor, and no others.
_TENSOR, _ATTRIBUTE, _NODE, _GRAPH = "tensor", "attribute", "node", "graph"
_SPARSE, _FUNCTION, _MODEL = "sparse", "function", "model"
_INSIDE: Mapping[str, Mapping[int, str]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _FUNCTION: {7: _NODE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
_ENTRY = 13  # TensorProto.external_data: StringStringEntryProto {1: key, 2: value}


@dataclass(slots=True)
class _Reader:
    """The file, and how much more of it may be looked at."""

    file: BinaryIO
    left: int = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of each field with a length in the message at `start`."""
        at = start
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise BadArtifact("its graph has too many parts")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == 2:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise BadArtifact("it is not a sound ONNX file: a part of it is cut off")
                yield number, at, at + length
                at += length
            elif wire == 0:
                _, at = self._varint(at, end)
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise BadArtifact("it is not an ONNX file")
        if at != end:
            raise BadArtifact("it is not a sound ONNX file: a part of it is cut off")

    def name(self, start: int, end: int) -> bytes:
        if end - start > MAX_NAME_BYTES:
            raise BadArtifact("the name of its external data is too long")
        self.file.seek(start)
        return self.file.read(end - start)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        self.file.seek(at)
        value = 0
        for shift, byte in enumerate(self.file.read(min(10, max(end - at, 0)))):
            value |= (byte & 0x7F) << (7 * shift)
            if byte < 0x80:
                return value, at + shift + 1
        raise BadArtifact("it is not an ONNX file")


def external_files(path: Path) -> tuple[str, ...]:
    """The files, relative to its directory, in which tensors of it lie; raises OSError, BadArtifact."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        reader = _Reader(file)
        return tuple(dict.fromkeys(_locations(reader, _MODEL, 0, size, 0)))


def _locations(reader: _Reader, kind: str, start: int, end: int, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise BadArtifact("its graphs lie too deep inside each other")
    for number, at, until in reader.fields(start, end):
        if kind == _TENSOR:
            if number == _ENTRY:
                yield from _location(reader, at, until)
        elif (inner := _INSIDE[kind].get(number)) is not None:
            yield from _locations(reader, inner, at, until, depth + 1)


def _location(reader: _Reader, start: int, end: int) -> Iterator[str]:
    entry = {number: reader.name(at, until) for number, at, until in reader.fields(start, end)}
    if entry.get(1) == b"location":
        try:
            yield entry.get(2, b"").decode().removeprefix("./")
        except UnicodeDecodeError as error:
            raise BadArtifact("the name of its external data is not UTF-8") from error
