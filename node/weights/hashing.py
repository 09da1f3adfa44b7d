"""The digest of a model that lies on this disk, be it a file or a directory: `artifact_of(path)`.

A lone safetensors file has the digest of `modelnet_p2p/digest.py`. A lone file of another kind is listed as
`model` with its suffix, so that its digest does not change when it is renamed; an ONNX file brings the files
that it names as its external data. Of a directory all that is data is listed, and nothing else: a program or
a pickle in it is no part of the model. Each file is read once, in pieces: nothing is mapped, for a file that
is cut off meanwhile would end the process.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from modelnet_p2p.artifact import (
    LONE,
    MAX_FILES,
    MAX_FOLDERS,
    Artifact,
    FileHashes,
    is_data,
    is_weights,
    path_trouble,
)
from modelnet_p2p.digest import CHUNK_BYTES, BadArtifact, TensorHash, header_bytes, tensor_places
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.weights.onnx_data import external_files

MAX_ENTRIES = 20_000  # of a directory and all below it that are looked at: a mistyped `~` ends soon


@dataclass(frozen=True, slots=True)
class Mark:
    """By what a file is told to be still the one that was hashed."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Mark:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class OnDisk:
    """An artifact and where its files lie: by the path in its listing, the place here and its mark."""

    artifact: Artifact
    places: Mapping[str, Path]
    marks: Mapping[str, Mark]

    @property
    def root(self) -> bytes:
        """The model's digest: 32 bytes."""
        return self.artifact.root

    @property
    def listing(self) -> bytes:
        """What hashes to it."""
        return self.artifact.encoded

    @property
    def size(self) -> int:
        return self.artifact.size


def artifact_of(
    path: Path, *, chunk_bytes: int = CHUNK_BYTES, told: Callable[[int], object] = lambda count: None
) -> OnDisk:
    """The digest of the model at `path`, a file or a directory, and all that proves it.

    Blocks for as long as reading takes, about a second for each GB; `told` hears how many bytes each piece
    has. Raises LocalError (bad-input) that names the file: not there, not readable, no data, damaged, changed
    meanwhile.
    """
    try:
        places = files_of(path)
        hashed = {name: hash_file(place, name, chunk_bytes, told) for name, place in sorted(places.items())}
        artifact = Artifact(tuple(file for file, _ in hashed.values()), chunk_bytes)
    except OSError as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read {error.filename or path}: {reason(error)}") from error
    except BadArtifact as error:
        raise LocalError(Code.BAD_INPUT, f"{path} cannot have a digest: {error}") from error
    return OnDisk(artifact, places, {name: mark for name, (_, mark) in hashed.items()})


def files_of(path: Path) -> dict[str, Path]:
    """The files of the model at `path`, by their names in its listing; raises OSError, BadArtifact."""
    if path.is_dir():
        return _files_below(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise BadArtifact("it is not there")
    if not is_weights(path.name):
        raise BadArtifact(
            f"a file of the kind {suffix or path.name!r} is not one that holds weights and no code"
        )
    if suffix == ".safetensors":
        return {LONE: path}
    found = {f"model{suffix}": path}
    if suffix == ".onnx":
        for name in external_files(path):
            if trouble := path_trouble(name):
                raise BadArtifact(f"its external data {name[:80]!r} {trouble}")
            if name in found:
                raise BadArtifact(f"its external data {name[:80]!r} has the name of the model itself")
            place = path.parent / name
            if not place.resolve().is_relative_to(path.parent.resolve()):
                raise BadArtifact(f"its external data {name[:80]!r} lies in another directory")
            found[name] = place
    return found


def _files_below(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for place in _walk(root, 0, [MAX_ENTRIES]):
        name = PurePosixPath(place.relative_to(root)).as_posix()
        if not is_data(name):
            continue
        if trouble := path_trouble(name):
            raise BadArtifact(f"the path {name[:80]!r} in it {trouble}")
        if len(found) == MAX_FILES:
            raise BadArtifact(f"it has more than {MAX_FILES} files")
        found[name] = place
    if not any(is_weights(name) for name in found):
        raise BadArtifact("no file in it holds weights and no code: .safetensors, .onnx, .tflite or .gguf")
    return found


def _walk(folder: Path, depth: int, left: list[int]) -> Iterator[Path]:
    """The regular files below `folder`. Hidden ones are passed over, and links that leave the model."""
    for entry in sorted(folder.iterdir()):
        left[0] -= 1
        if left[0] < 0:
            raise BadArtifact(f"it holds more than {MAX_ENTRIES} files: hardly a model's directory")
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not _stays(entry, folder):
            if is_data(entry.name):
                raise BadArtifact(f"the link {entry.name!r} in it leads to another place")
        elif entry.is_dir() and not entry.is_symlink():
            if depth < MAX_FOLDERS:
                yield from _walk(entry, depth + 1, left)
        elif entry.is_file():
            yield entry


def _stays(link: Path, folder: Path) -> bool:
    """Whether a link leads to a file of the same folder, or to the `blobs` of a Hugging Face cache, whose
    snapshots are links alone. A directory from elsewhere may hold one to a private key."""
    target = link.resolve()
    if target.parent == folder.resolve():
        return target.is_file()
    snapshots = next((above for above in folder.parents if above.name == "snapshots"), None)
    return snapshots is not None and target.parent == (snapshots.parent / "blobs").resolve()


def hash_file(
    place: Path, name: str, chunk_bytes: int = CHUNK_BYTES, told: Callable[[int], object] = lambda count: None
) -> tuple[FileHashes, Mark]:
    """All hashes of one file, read once from beginning to end; raises OSError, BadArtifact."""
    with place.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadArtifact(f"{place.name} is not a regular file")
        size, mark = status.st_size, Mark.of(status)
        tensors = _Tensors(_head(file, size) if name.lower().endswith(".safetensors") else b"", size)
        file.seek(0)
        chunks: list[bytes] = []
        buffer = memoryview(bytearray(min(chunk_bytes, max(size, 1))))
        for at in range(0, size, chunk_bytes):
            chunk = buffer[: min(chunk_bytes, size - at)]
            _fill(file, chunk, place)
            chunks.append(hashlib.sha256(chunk).digest())
            tensors.update(chunk, at)
            told(len(chunk))
        if Mark.of(os.fstat(file.fileno())) != mark:
            raise BadArtifact(f"{place.name} was changed while it was read")
    return FileHashes(name, size, tuple(chunks), tensors.hashes()), mark


def _head(file: BinaryIO, size: int) -> bytes:
    start = file.read(8)
    rest = header_bytes(start, size) - 8
    head = bytearray(rest)
    _fill(file, memoryview(head), Path(str(file.name)))
    return start + head


def _fill(file: BinaryIO, buffer: memoryview, place: Path) -> None:
    at = 0
    while at < len(buffer):
        count = file.readinto(buffer[at:])  # type: ignore[attr-defined]  # a raw file, which has it
        if not count:
            raise BadArtifact(f"{place.name} was cut off while it was read")
        at += count


class _Tensors:
    """The hashes of a safetensors file's tensors, as its bytes pass by in order."""

    def __init__(self, head: bytes, size: int) -> None:
        places = tensor_places(head, size) if head else ()
        self._left = list(reversed(places))  # the next one is the last
        self._hash = hashlib.sha256()
        self._done: list[TensorHash] = []

    def update(self, data: memoryview, at: int) -> None:
        """`data` begins at byte `at` of the file."""
        end = at + len(data)
        while self._left and self._left[-1].start < end:
            place = self._left[-1]
            self._hash.update(data[max(place.start - at, 0) : place.end - at])
            if place.end > end:
                return
            self._finish()

    def _finish(self) -> None:
        place = self._left.pop()
        self._done.append(TensorHash(place.name, place.dtype, place.shape, self._hash.digest()))
        self._hash = hashlib.sha256()

    def hashes(self) -> tuple[TensorHash, ...]:
        while self._left:  # empty ones at the file's end
            self._finish()
        return tuple(sorted(self._done, key=lambda tensor: tensor.name))
