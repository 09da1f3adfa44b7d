"""What an ONNX file says of itself, read before a runtime has it: sizes, operators, words, and other files.

The file is protobuf; the few messages that matter are walked here by their field numbers, without the package
onnx and without touching the tensors' bytes, so a model of 2 GB is looked through in milliseconds.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.protobuf import Messages

MAX_DEPTH = 32  # graphs inside of graphs: loops and branches
MAX_FIELDS = 1 << 21  # that are looked at: the largest models have some 100,000 nodes of ten fields
MAX_TEXT_BYTES = 1 << 16  # of one name or word; a licence may be there in full
MAX_PROPERTIES = 256
MAX_DIMS = 64  # of one tensor

# Operators that onnxruntime has itself. All others come from libraries, which are programs and never loaded.
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft"})
COMPILED = frozenset({"EPContext"})  # a program for an accelerator, with a path to more of it

_PRECISIONS = {
    1: "float32",
    2: "uint8",
    3: "int8",
    10: "float16",
    11: "float64",
    16: "bfloat16",
    21: "uint4",
    22: "int4",
}
_EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """`external` are the files that it names, relative to its directory."""

    parameters: int
    precision: str
    properties: Mapping[str, str]
    operators: frozenset[str]
    external: tuple[str, ...]


class BadOnnx(ValueError):
    """The file is no sound ONNX file."""


def read_onnx(path: Path) -> OnnxFile:
    """What that file says; raises LocalError (bad-input, unsafe) that says what of it is not served."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _Walk(data).model()
    except (OSError, ValueError) as error:  # BadOnnx, BadProtobuf, and mmap's own one for an empty file
        raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {error}") from error
    if compiled := found.operators & COMPILED:
        words = f"{path} holds {min(compiled)}, a compiled program for an accelerator"
        raise LocalError(Code.UNSAFE, words, hint="export it without compiling it first")
    for name in found.external:
        check_beside(path, name)
    return found


def check_beside(path: Path, name: str) -> None:
    """Raises LocalError (unsafe) unless `name` is a file in the directory of `path`, or below it."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and not name.startswith(("/", "~", "*")) and ".." not in parts and "\\" not in name
    place = path.parent / name
    if not plain or not place.resolve().is_relative_to(path.parent.resolve()):
        words = f"{path} wants to read {name[:200]!r}, which is not beside it"
        raise LocalError(Code.UNSAFE, words, hint="its external data must lie in its own directory")
    if not place.is_file():
        raise LocalError(Code.BAD_INPUT, f"{path} needs {name[:200]!r} beside it, and there is no such file")


class _Walk:
    """One look through the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._messages = Messages(lambda start, end: data[start:end], MAX_FIELDS)
        self._elements: Counter[str] = Counter()
        self._parameters = 0
        self._properties: dict[str, str] = {}
        self._operators: set[tuple[str, str]] = set()
        self._functions: set[str] = set()
        self._external: dict[str, None] = {}

    def model(self) -> OnnxFile:
        for number, value in self._messages.fields(0, len(self._data)):
            match number, value:
                case 7, (start, end):
                    self._graph(start, end, 0)
                case 14, (start, end) if len(self._properties) < MAX_PROPERTIES:
                    key, text = self._pair(start, end)
                    self._properties[key] = text
                case 25, (start, end):
                    self._function(start, end)
        unknown = {domain for domain, _ in self._operators} - DOMAINS - self._functions
        if unknown:
            raise BadOnnx(
                f"it has operators of {min(unknown)[:80]!r}, which come from a library: "
                f"libraries are programs, and are not loaded"
            )
        precision = self._elements.most_common(1)[0][0] if self._elements else ""
        names = frozenset(name for _, name in self._operators)
        return OnnxFile(self._parameters, precision, self._properties, names, tuple(self._external))

    def _function(self, start: int, end: int) -> None:
        for number, value in self._messages.fields(start, end):
            match number, value:
                case 7, (at, until):
                    self._node(at, until, 0)
                case 10, (at, until):
                    self._functions.add(self._text(at, until))

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise BadOnnx("its graphs lie too deep inside each other")
        for number, value in self._messages.fields(start, end):
            match number, value:
                case 1, (at, until):
                    self._node(at, until, depth)
                case 5, (at, until):
                    self._tensor(at, until)
                case 15, (at, until):
                    self._sparse(at, until)

    def _node(self, start: int, end: int, depth: int) -> None:
        domain = name = ""
        for number, value in self._messages.fields(start, end):
            match number, value:
                case 4, (at, until):
                    name = self._text(at, until)
                case 7, (at, until):
                    domain = self._text(at, until)
                case 5, (at, until):
                    self._attribute(at, until, depth)
        self._operators.add((domain, name))

    def _attribute(self, start: int, end: int, depth: int) -> None:
        for number, value in self._messages.fields(start, end):
            match number, value:
                case ((5 | 10), (at, until)):
                    self._tensor(at, until)
                case ((6 | 11), (at, until)):
                    self._graph(at, until, depth + 1)
                case ((22 | 23), (at, until)):
                    self._sparse(at, until)

    def _sparse(self, start: int, end: int) -> None:
        for number, value in self._messages.fields(start, end):
            match number, value:
                case ((1 | 2), (at, until)):
                    self._tensor(at, until)

    def _tensor(self, start: int, end: int) -> None:
        dims: list[int] = []
        kind = location = 0
        path = ""
        for number, value in self._messages.fields(start, end):
            match number, value:
                case 1, int(size):
                    dims.append(size)
                case 1, (at, until):  # packed
                    while at < until and len(dims) <= MAX_DIMS:
                        size, at = self._messages.varint(at, until)
                        dims.append(size)
                case 2, int(kind):
                    pass
                case 14, int(location):
                    pass
                case 13, (at, until):
                    key, text = self._pair(at, until)
                    path = text if key == "location" else path
        if len(dims) > MAX_DIMS or any(size >= 1 << 40 for size in dims):
            raise BadOnnx(f"a tensor of it has the size {dims[:8]}")
        self._parameters += prod(dims)
        if kind in _PRECISIONS:
            self._elements[_PRECISIONS[kind]] += prod(dims)
        if location == _EXTERNAL or path:
            self._external[path] = None

    def _pair(self, start: int, end: int) -> tuple[str, str]:
        """A StringStringEntryProto."""
        fields = self._messages.fields(start, end)
        texts = {number: self._text(*value) for number, value in fields if isinstance(value, tuple)}
        return texts.get(1, ""), texts.get(2, "")

    def _text(self, start: int, end: int) -> str:
        return self._data[start : min(end, start + MAX_TEXT_BYTES)].decode(errors="replace")
