"""What the header of a GGUF file says: its metadata and its tensors' shapes, read here and bounded.

The library that runs such a model is written in C; so a file that is not sound is refused before it sees it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the first one had lengths of 32 bits, and is not met any more
MAX_ENTRIES = 4096  # of metadata; models have some dozens
MAX_TENSORS = 100_000
MAX_TEXT_BYTES = 1 << 20  # a chat template has some KB
MAX_ITEMS = 1 << 21  # of one list: a vocabulary has some 100,000 tokens
MAX_HEADER_BYTES = 256 << 20
MAX_RANK = 4
KEPT_ITEMS = 64  # of a list that is handed out: nobody here needs a vocabulary

# Numbers by their type: u8 i8 u16 i16 u32 i32 f32, and u64 i64 f64.
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _TEXT, _LIST = 7, 8, 9
_TENSOR_TYPES = {
    0: "float32",
    1: "float16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    9: "q8_1",
    10: "q2_k",
    11: "q3_k",
    12: "q4_k",
    13: "q5_k",
    14: "q6_k",
    15: "q8_k",
    16: "iq2_xxs",
    17: "iq2_xs",
    18: "iq3_xxs",
    19: "iq1_s",
    20: "iq4_nl",
    21: "iq3_s",
    22: "iq2_s",
    23: "iq4_xs",
    28: "float64",
    29: "iq1_m",
    30: "bfloat16",
    34: "tq1_0",
    35: "tq2_0",
    39: "mxfp4",
    40: "nvfp4",
    41: "q1_0",
}


class BadGguf(ValueError):
    """A file is no sound GGUF file of a version that is known here."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """`fields` by their names as the file has them; of long lists only the first KEPT_ITEMS."""

    fields: Mapping[str, object]
    parameters: int
    precision: str  # of most parameters

    def text(self, name: str) -> str:
        """A field that is text; empty where there is none."""
        found = self.fields.get(name)
        return found if isinstance(found, str) else ""

    def texts(self, name: str) -> list[str]:
        found = self.fields.get(name)
        return [entry for entry in found if isinstance(entry, str)] if isinstance(found, list) else []

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was trained on."""
        found = self.fields.get(f"{self.text('general.architecture')}.context_length")
        return found if isinstance(found, int) and 0 < found < 1 << 31 else None


def read_gguf(path: Path) -> GgufFile:
    """The header of the file at `path`; raises OSError, BadGguf."""
    with path.open("rb") as file:
        reader = _Reader(file, min(path.stat().st_size, MAX_HEADER_BYTES))
        if reader.take(4) != MAGIC:
            raise BadGguf("it does not begin as a GGUF file")
        version = reader.whole("<I")
        if version not in VERSIONS:
            raise BadGguf(f"it is of version {version}, known are {' and '.join(map(str, VERSIONS))}")
        tensors, entries = reader.count(MAX_TENSORS, "tensors"), reader.count(MAX_ENTRIES, "entries")
        fields: dict[str, object] = {}
        for _ in range(entries):
            name = reader.text()
            if name in fields:
                raise BadGguf(f"it names {name[:80]!r} twice")
            fields[name] = reader.value(reader.whole("<I"))
        counts: Counter[str] = Counter()
        for _ in range(tensors):
            kind, size = reader.tensor()
            counts[kind] += size
    return GgufFile(fields, counts.total(), counts.most_common(1)[0][0] if counts else "")


class _Reader:
    """Takes values off a file, and no more bytes than `left`."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file = file
        self._left = left

    def take(self, count: int) -> bytes:
        self._left -= count
        data = self._file.read(count) if self._left >= 0 else b""
        if len(data) != count:
            raise BadGguf("its header ends too early, or is beyond all measure")
        return data

    def whole(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def count(self, most: int, what: str) -> int:
        found = self.whole("<Q")
        if found > most:
            raise BadGguf(f"it has {found} {what}, more than {most}")
        return found

    def text(self) -> str:
        return self.take(self.count(MAX_TEXT_BYTES, "bytes in a text")).decode(errors="replace")

    def value(self, kind: int, depth: int = 0) -> object:
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            found: object = struct.unpack(form, self.take(struct.calcsize(form)))[0]
            return found
        if kind == _BOOL:
            return self.take(1) != b"\0"
        if kind == _TEXT:
            return self.text()
        if kind == _LIST and depth == 0:  # lists in lists are in no model
            return self._items()
        raise BadGguf(f"a value of it is of the type {kind}")

    def _items(self) -> list[object]:
        kind, count = self.whole("<I"), self.count(MAX_ITEMS, "items in a list")
        form = "<?" if kind == _BOOL else _NUMBERS.get(kind)
        if form is not None:  # all at once
            size = struct.calcsize(form)
            data = self.take(size * count)[: size * KEPT_ITEMS]
            return [entry for (entry,) in struct.iter_unpack(form, data)]
        kept: list[object] = []
        for at in range(count):
            entry = self.value(kind, 1)
            if at < KEPT_ITEMS:
                kept.append(entry)
        return kept

    def tensor(self) -> tuple[str, int]:
        """Of one tensor's entry: its type, and how many numbers it has."""
        self.text()
        rank = self.whole("<I")
        if rank > MAX_RANK:
            raise BadGguf(f"a tensor of it has {rank} dimensions")
        size = prod(self.whole("<Q") for _ in range(rank))
        kind = self.whole("<I")
        self.whole("<Q")  # where its bytes begin
        if size >= 1 << 62:
            raise BadGguf("a tensor of it is beyond all measure")
        return _TENSOR_TYPES.get(kind, f"ggml-{kind}"), size
