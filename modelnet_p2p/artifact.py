"""All files of a model under one digest: the listing of a download, whose bytes are what is hashed.

A model that is a lone safetensors file has the listing of `digest.py`, and keeps the digest that it always
had. Every other model, a directory or a file of another kind, has this one, in which each file has its size
and its chunks, and a safetensors file its tensors. So whoever knows a digest knows which files belong to the
model, and can check each chunk of each as it arrives.

    modelnet-files 1
    chunk-bytes 1048576
    file 1203 config.json
    chunk 7f83b165…
    file 237812 model.safetensors
    chunk 0263829f…
    tensor F32 64,32 9b74c989… encoder.0.weight

A listing comes from strangers, and its paths become files: what a path may be is decided here, once. Only
data: no program, and no format that can hold one (pickles), whatever the model's directory has beside them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from itertools import pairwise

from modelnet_p2p.digest import (
    CHUNK_BYTES,
    MAX_LISTING_BYTES,
    BadArtifact,
    Listing,
    TensorHash,
    parse_hash,
    parse_number,
    parse_tensor,
)

MAX_FILES = 1024  # a transformers directory has ten; one shard per layer of the largest models, a few hundred
MAX_PATH_BYTES = 200  # below what every file system takes, with a cache's own folders before it
MAX_FOLDERS = 4  # one inside the other: `onnx/` and the like
MAX_CHUNK_BYTES = 4 << 20  # a puller holds several, and learns only at a chunk's end whether it is right
LONE = "model.safetensors"  # how the only file of a version 1 listing is called

# What a model is in, and what is read beside it: tensors, settings, vocabularies, words for people.
WEIGHTS = frozenset({".safetensors", ".onnx", ".tflite", ".gguf"})
BESIDE = frozenset(
    {".json", ".jsonl", ".txt", ".md", ".model", ".tiktoken", ".vocab", ".merges", ".jinja", ".spm"}
    | {".data", ".onnx_data", ".bpe"}
)
WORDS = frozenset({"license", "licence", "notice", "readme"})  # files for people that have no suffix
_FIRST_LINE = "modelnet-files 1"
_SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+=@, -]*[A-Za-z0-9_+=@-])?", re.ASCII)
# Names that are devices on Windows, whatever their suffix.
_DEVICES = re.compile(r"(?i)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileHashes:
    """One file of a model: its path with forward slashes, and its hashes; tensors sorted by name."""

    path: str
    size: int
    chunks: tuple[bytes, ...]
    tensors: tuple[TensorHash, ...] = ()

    def __post_init__(self) -> None:
        if trouble := path_trouble(self.path):
            raise BadArtifact(f"the path {self.path[:80]!r} {trouble}")
        if any(a.name >= b.name for a, b in pairwise(self.tensors)):
            raise BadArtifact("the tensors are not sorted by name")


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of an artifact: where its bytes lie, and what they hash to."""

    path: str
    offset: int
    size: int
    sha256: bytes

    def check(self, data: bytes | bytearray | memoryview) -> bool:
        return len(data) == self.size and hashlib.sha256(data).digest() == self.sha256


@dataclass(frozen=True)
class Artifact:
    """The files of one model, sorted by path; `root` is the model's digest."""

    files: tuple[FileHashes, ...]
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise BadArtifact(f"chunks have 1 to {MAX_CHUNK_BYTES} bytes, not {self.chunk_bytes}")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise BadArtifact(f"a model has 1 to {MAX_FILES} files, not {len(self.files)}")
        if any(a.path >= b.path for a, b in pairwise(self.files)):
            raise BadArtifact("the files are not sorted by path")
        for file in self.files:
            if len(file.chunks) != -(-file.size // self.chunk_bytes):
                raise BadArtifact(
                    f"{len(file.chunks)} chunks do not make the {file.size} bytes of {file.path}"
                )
        _check_together([file.path for file in self.files])

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def is_lone(self) -> bool:
        """Whether it is a single safetensors file, with the listing that such a file always had."""
        return len(self.files) == 1 and self.files[0].path == LONE

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Every chunk, numbered through all files; an empty file has none."""
        step = self.chunk_bytes
        return tuple(
            Piece(file.path, at * step, min(step, file.size - at * step), sha256)
            for file in self.files
            for at, sha256 in enumerate(file.chunks)
        )

    @cached_property
    def encoded(self) -> bytes:
        """The listing's bytes."""
        if self.is_lone:
            (file,) = self.files
            return Listing(file.size, self.chunk_bytes, file.chunks, file.tensors).encode()
        lines = [_FIRST_LINE, f"chunk-bytes {self.chunk_bytes}"]
        for file in self.files:
            lines.append(f"file {file.size} {file.path}")
            lines += [f"chunk {chunk.hex()}" for chunk in file.chunks]
            lines += [tensor.line() for tensor in file.tensors]
        return "\n".join([*lines, ""]).encode()

    @cached_property
    def root(self) -> bytes:
        """The digest: 32 bytes."""
        return hashlib.sha256(self.encoded).digest()

    @classmethod
    def of_listing(cls, listing: Listing) -> Artifact:
        """The artifact that is one safetensors file."""
        return cls((FileHashes(LONE, listing.size, listing.chunks, listing.tensors),), listing.chunk_bytes)

    @classmethod
    def decode(cls, data: bytes) -> Artifact:
        """The artifact of that listing, of either form; raises BadArtifact on whatever is not written so."""
        if len(data) > MAX_LISTING_BYTES:
            raise BadArtifact(f"a listing has at most {MAX_LISTING_BYTES} bytes, not {len(data)}")
        if not data.startswith(_FIRST_LINE.encode() + b"\n"):
            return cls.of_listing(Listing.decode(data))
        try:
            text = StringIO(data.decode(), newline="\n")
        except UnicodeDecodeError as error:
            raise BadArtifact("the listing is not UTF-8") from error
        lines = (line.removesuffix("\n") for line in text)
        next(lines)
        chunk_bytes = parse_number(next(lines, "").removeprefix("chunk-bytes "))
        artifact = cls(tuple(_files(lines)), chunk_bytes)
        if artifact.encoded != data:
            raise BadArtifact("the listing is not written in the one canonical way")
        return artifact


def _files(lines: Iterator[str]) -> Iterator[FileHashes]:
    head: tuple[str, int] | None = None
    chunks: list[bytes] = []
    tensors: list[TensorHash] = []
    count = 0
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "file":
            count += 1
            if count > MAX_FILES:
                raise BadArtifact(f"a model has at most {MAX_FILES} files")
            if head is not None:
                yield FileHashes(*head, tuple(chunks), tuple(tensors))
            size, _, path = rest.partition(" ")
            head, chunks, tensors = (path, parse_number(size)), [], []
        elif kind == "chunk" and head is not None and not tensors:
            chunks.append(parse_hash(rest))
        elif kind == "tensor" and head is not None:
            tensors.append(parse_tensor(line))
        else:
            raise BadArtifact(f"a listing has no line {line[:80]!r}")
    if head is not None:
        yield FileHashes(*head, tuple(chunks), tuple(tensors))


def is_data(path: str) -> bool:
    """Whether a file of that name is data that a model may need; programs and pickles are not."""
    name = path.rpartition("/")[2].lower()
    dot = name.rfind(".")
    return name in WORDS if dot < 0 else name[dot:] in WEIGHTS | BESIDE


def is_weights(path: str) -> bool:
    """Whether a file of that name holds a model."""
    return any(path.lower().endswith(suffix) for suffix in WEIGHTS)


def path_trouble(path: str) -> str:
    """What is wrong with a path inside of a model's directory; empty if nothing is.

    Absolute ones, `..`, hidden files, and names that another system reads otherwise are all refused by the
    one rule of what a segment may be.
    """
    segments = path.split("/")
    if len(path) > MAX_PATH_BYTES or len(segments) > MAX_FOLDERS + 1:
        return f"is longer than {MAX_PATH_BYTES} bytes or deeper than {MAX_FOLDERS} folders"
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or _DEVICES.fullmatch(segment):
            return f"has a part, {segment[:40]!r}, that is no plain file name of ASCII letters"
    return "" if is_data(path) else "is not of a kind that holds data alone"


def _check_together(paths: Sequence[str]) -> None:
    """No two of them may be one file on a system that ignores case, and no file may be another's folder."""
    folded = {path.lower() for path in paths}
    if len(folded) != len(paths):
        raise BadArtifact("two paths differ in upper and lower case alone")
    for path in folded:
        at = path.find("/")
        while at >= 0:
            if path[:at] in folded:
                raise BadArtifact(f"{path[:at]!r} is both a file and a folder")
            at = path.find("/", at + 1)
    folders = {p[:at] for p in paths for at in range(len(p)) if p[at] == "/"}
    if len({folder.lower() for folder in folders}) != len(folders):
        raise BadArtifact("two folders differ in upper and lower case alone")
