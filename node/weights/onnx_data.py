"""Which other files an ONNX file names: its tensors may lie outside of it.

The file is protobuf, and its few messages that can hold a tensor are walked here by their field numbers,
without onnx and without reading the tensors themselves: a field of no interest is stepped over.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3 (ModelProto, GraphProto, TensorProto)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from modelnet_p2p.digest import BadArtifact
from modelnet_p2p.protobuf import BadProtobuf, Messages

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


class _Reader:
    """The file, and how much more of it may be looked at."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._messages = Messages(self._read, MAX_FIELDS)

    def messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of each field with a length in the message at `start`."""
        for number, value in self._messages.fields(start, end):
            if isinstance(value, tuple):
                yield number, *value

    def name(self, start: int, end: int) -> bytes:
        if end - start > MAX_NAME_BYTES:
            raise BadArtifact("the name of its external data is too long")
        return self._read(start, end)

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(max(end - start, 0))


def external_files(path: Path) -> tuple[str, ...]:
    """The files, relative to its directory, in which tensors of it lie; raises OSError, BadArtifact."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return tuple(dict.fromkeys(_locations(_Reader(file), _MODEL, 0, size, 0)))
        except BadProtobuf as error:
            raise BadArtifact(f"it is not a sound ONNX file: {error}") from error


def _locations(reader: _Reader, kind: str, start: int, end: int, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise BadArtifact("its graphs lie too deep inside each other")
    for number, at, until in reader.messages(start, end):
        if kind == _TENSOR:
            if number == _ENTRY:
                yield from _location(reader, at, until)
        elif (inner := _INSIDE[kind].get(number)) is not None:
            yield from _locations(reader, inner, at, until, depth + 1)


def _location(reader: _Reader, start: int, end: int) -> Iterator[str]:
    entry = {number: reader.name(at, until) for number, at, until in reader.messages(start, end)}
    if entry.get(1) == b"location":
        try:
            yield entry.get(2, b"").decode().removeprefix("./")
        except UnicodeDecodeError as error:
            raise BadArtifact("the name of its external data is not UTF-8") from error
