"""A model's digest: the sha256 of a listing that names every tensor and every chunk of its file.

The listing is plain text, one hash a line, and its bytes are what is hashed. Who holds a listing
that matches the digest can check any piece alone: a stage the tensors of its layers, a download
each chunk as it arrives. The file is a safetensors file; its header is read here without numpy.

    modelnet-digest 1
    size 237812
    chunk-bytes 1048576
    chunk 7f83b165…
    tensor F32 64,32 9b74c989… encoder.0.weight

Source of the file format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from itertools import pairwise
from math import prod

CHUNK_BYTES = 1 << 20  # a lost or forged piece costs at most this much; 60 GiB list in 5 MiB
MAX_LISTING_BYTES = 64 << 20  # 900,000 lines: chunks of a 900 GiB file
MAX_HEADER_BYTES = 16 << 20  # of a safetensors file; 100,000 tensors take 12 MiB
MAX_RANK = 16

_FIRST_LINE = "modelnet-digest 1"
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class BadArtifact(ValueError):
    """A file is not a sound safetensors file, or a listing is not one that this module writes."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor's bytes lie in the file: `start` and `end` count from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorHash:
    """One tensor's name, its dtype as safetensors writes it, its shape, the sha256 of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: bytes

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise BadArtifact(f"the tensor name {self.name[:80]!r} cannot be printed on one line")

    def line(self) -> str:
        """As a line of a listing."""
        return f"tensor {self.dtype} {','.join(map(str, self.shape)) or '-'} {self.sha256.hex()} {self.name}"


@dataclass(frozen=True)
class Listing:
    """Every hash of one file; `root` is the model's digest."""

    size: int
    chunk_bytes: int
    chunks: tuple[bytes, ...]
    tensors: tuple[TensorHash, ...]  # sorted by name

    def encode(self) -> bytes:
        lines = [_FIRST_LINE, f"size {self.size}", f"chunk-bytes {self.chunk_bytes}"]
        lines += [f"chunk {chunk.hex()}" for chunk in self.chunks]
        lines += [tensor.line() for tensor in self.tensors]
        return "\n".join([*lines, ""]).encode()

    @classmethod
    def decode(cls, data: bytes) -> Listing:
        """The listing in `data`; raises BadArtifact on whatever `encode` would not write so."""
        if len(data) > MAX_LISTING_BYTES:
            raise BadArtifact(f"a listing has at most {MAX_LISTING_BYTES} bytes, not {len(data)}")
        try:
            text = StringIO(data.decode(), newline="\n")
            listing = cls._parse(line.removesuffix("\n") for line in text)
        except (UnicodeDecodeError, StopIteration) as error:
            raise BadArtifact("the listing is cut short or not UTF-8") from error
        if listing.encode() != data:
            raise BadArtifact("the listing is not written in the one canonical way")
        return listing

    @classmethod
    def _parse(cls, lines: Iterator[str]) -> Listing:
        if next(lines) != _FIRST_LINE:
            raise BadArtifact(f"a listing begins with {_FIRST_LINE!r}")
        size = parse_number(next(lines).removeprefix("size "))
        chunk_bytes = parse_number(next(lines).removeprefix("chunk-bytes "))
        chunks: list[bytes] = []
        tensors: list[TensorHash] = []
        for line in lines:
            if line.startswith("chunk ") and not tensors:
                chunks.append(parse_hash(line.removeprefix("chunk ")))
            else:
                tensors.append(parse_tensor(line))
        if chunk_bytes < 1 or len(chunks) != -(-size // chunk_bytes):
            raise BadArtifact(f"{len(chunks)} chunks of {chunk_bytes} bytes do not make {size} bytes")
        if any(a.name >= b.name for a, b in pairwise(tensors)):
            raise BadArtifact("the tensors are not sorted by name")
        return cls(size, chunk_bytes, tuple(chunks), tuple(tensors))

    @cached_property
    def root(self) -> bytes:
        """The digest: 32 bytes."""
        return hashlib.sha256(self.encode()).digest()

    def check_chunk(self, index: int, data: bytes | memoryview) -> bool:
        """Whether `data` is the chunk that begins at byte `index * chunk_bytes`."""
        return 0 <= index < len(self.chunks) and hashlib.sha256(data).digest() == self.chunks[index]

    def check_tensor(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> bool:
        """Whether `data` (little endian, C order) is the tensor of that name, dtype and shape."""
        found = self._by_name.get(name)
        return found == TensorHash(name, dtype, shape, hashlib.sha256(data).digest())

    @cached_property
    def _by_name(self) -> dict[str, TensorHash]:
        return {tensor.name: tensor for tensor in self.tensors}


def listing_of(data: bytes | memoryview, chunk_bytes: int = CHUNK_BYTES) -> Listing:
    """The listing of a safetensors file, given whole (for example memory-mapped)."""
    view = memoryview(data).cast("B")
    chunks = (view[at : at + chunk_bytes] for at in range(0, len(view), chunk_bytes))
    tensors = (
        TensorHash(p.name, p.dtype, p.shape, hashlib.sha256(view[p.start : p.end]).digest())
        for p in sorted(tensor_places(view), key=lambda place: place.name)
    )
    return Listing(len(view), chunk_bytes, tuple(hashlib.sha256(c).digest() for c in chunks), tuple(tensors))


def tensor_places(data: bytes | memoryview, size: int | None = None) -> tuple[TensorPlace, ...]:
    """Where the tensors lie, in file order; raises BadArtifact unless they fill the file exactly.

    Of a file of `size` bytes its beginning is enough: as many bytes as `header_bytes` says.
    """
    view = memoryview(data).cast("B")
    size = len(view) if size is None else size
    header, at = _header(view, size)
    places = sorted(
        (_place(name, entry, at) for name, entry in header.items() if name != "__metadata__"),
        key=lambda place: (place.start, place.end),
    )
    for place in places:
        if place.start != at:
            raise BadArtifact(f"tensor {place.name[:80]!r} begins at byte {place.start}, not at {at}")
        at = place.end
    if at != size:
        raise BadArtifact(f"the tensors end at byte {at} of {size}")
    return tuple(places)


def header_bytes(start: bytes, size: int) -> int:
    """How many bytes of a file of `size` bytes that begins so are its header; raises BadArtifact."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise BadArtifact("the header's length does not fit the file: not a safetensors file")
    return 8 + length


def metadata_of(data: bytes | memoryview) -> dict[str, str]:
    """The free text fields of a safetensors file's header."""
    view = memoryview(data).cast("B")
    found = _header(view, len(view))[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BadArtifact("the header's __metadata__ is not a map of texts")
    return found


def _header(view: memoryview, size: int) -> tuple[dict[str, object], int]:
    """The JSON header and the byte at which the tensors begin."""
    end = header_bytes(bytes(view[:8]), size)
    try:
        header = json.loads(bytes(view[8:end]), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"the header is not sound JSON: {str(error)[:120]}") from error
    if not isinstance(header, dict):
        raise BadArtifact("the header is not a map")
    return header, end


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _place(name: str, entry: object, base: int) -> TensorPlace:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]} if (
            dtype in _DTYPE_BITS
            and len(shape) <= MAX_RANK
            and all(type(dim) is int and 0 <= dim < 1 << 63 for dim in shape)
            and 0 <= start <= end
            and prod(shape) * _DTYPE_BITS[dtype] == (end - start) * 8
        ):
            return TensorPlace(name, dtype, tuple(shape), base + start, base + end)
    raise BadArtifact(f"the header's entry for tensor {name[:80]!r} is not sound")


def parse_tensor(line: str) -> TensorHash:
    """A tensor's line of a listing; raises BadArtifact."""
    match line.split(" ", 4):
        case ["tensor", dtype, shape, text, name] if dtype in _DTYPE_BITS:
            dims = () if shape == "-" else tuple(map(parse_number, shape.split(",", MAX_RANK)))
            return TensorHash(name, dtype, dims, parse_hash(text))
    raise BadArtifact(f"a listing has no line {line[:80]!r}")


def parse_number(text: str) -> int:
    """A number of a listing; raises BadArtifact."""
    if not _NUMBER.fullmatch(text):
        raise BadArtifact(f"{text[:40]!r} is not a number")
    return int(text)


def parse_hash(text: str) -> bytes:
    """A sha256 of a listing; raises BadArtifact."""
    if not _HASH.fullmatch(text):
        raise BadArtifact(f"{text[:80]!r} is not a sha256 in hex")
    return bytes.fromhex(text)
