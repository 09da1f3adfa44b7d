"""Weights that came from others, by their digest: whole ones, and those on their way.

    cache/<digest>/listing        the bytes that hash to the digest
                   files/…        the model's files, as the listing calls them
                   checked        by what each file is told to be still the one that was checked
                   manifests/…    owners' seals on this digest, one a file
    cache/<digest>.part/…         the same, not whole yet

A piece is on disk whole and right or it counts as missing, and no index says which: what lies there is
hashed again when a download goes on. So nothing can be out of step, whatever instruction was the last one
before a crash. A download that is whole is synced and gets its name in one rename.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

from modelnet_p2p.artifact import Artifact, Piece, is_weights
from modelnet_p2p.digest import MAX_LISTING_BYTES, BadArtifact
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import digest_text
from modelnet_p2p.node.disk.files import (
    make_private_directory,
    open_json,
    read_bounded,
    reason,
    seal_json,
    write_durably,
)
from modelnet_p2p.node.weights.hashing import Mark, OnDisk, files_of, hash_file
from modelnet_p2p.records import MAX_MANIFEST_BYTES, BadRecord, Manifest, open_manifest

PART = ".part"
GOING = ".going"  # suffix of what is being removed
MAX_MANIFESTS = 64  # owners' seals kept for one digest
MAX_CHECKED_BYTES = 1 << 20
SPARE_BYTES = 16 << 20  # left free on the disk by a download that just fits
Told = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Sealed:
    """One owner's seal on cached weights."""

    manifest: Manifest
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """What one folder of the cache holds."""

    root: bytes
    path: Path
    whole: bool
    size: int  # bytes of all its files, whole
    here: int  # bytes that take room on the disk
    manifests: tuple[Sealed, ...]


def free_bytes(folder: Path) -> int:
    """What the disk below that folder has left for this user."""
    return shutil.disk_usage(folder).free


class Cache:
    """One home's `cache/`. All methods block; several processes may use it at once."""

    def __init__(self, path: Path, room: Callable[[Path], int] = free_bytes) -> None:
        """`room` tells how many bytes the disk below a folder has left."""
        self.path = path
        self._room = room

    def folder(self, root: bytes) -> Path:
        return self.path / root.hex()

    def whole(self, root: bytes, told: Told = lambda count: None) -> OnDisk | None:
        """The files of that digest, if all are here; what was touched since it was checked is hashed again.

        What turns out damaged becomes a download that is not whole, of which what is right is kept.
        Raises LocalError (bad-state).
        """
        folder = self.folder(root)
        artifact = self._artifact(folder, root)
        if artifact is None:
            return None
        places = {file.path: folder / "files" / file.path for file in artifact.files}
        with _told_of(folder):
            known = _checked(folder)
            marks: dict[str, Mark] = {}
            for file in artifact.files:
                place = places[file.path]
                try:
                    mark = Mark.of(place.stat(follow_symlinks=False))
                    if known.get(file.path) != mark:
                        hashed, mark = hash_file(place, file.path, artifact.chunk_bytes, told)
                        if hashed != file:
                            raise BadArtifact("other bytes")
                except (FileNotFoundError, BadArtifact):
                    os.replace(folder, _part_of(folder))
                    return None
                marks[file.path] = mark
            if marks != known:
                _note_checked(folder, marks)
        return OnDisk(artifact, places, marks)

    def _artifact(self, folder: Path, root: bytes) -> Artifact | None:
        try:
            data, _ = read_bounded(folder / "listing", MAX_LISTING_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _bad(folder, reason(error)) from error
        if hashlib.sha256(data).digest() != root:
            return None
        return Artifact.decode(data)

    def listing(self, root: bytes) -> Artifact | None:
        """What an earlier download has learnt of that digest, if there is one and it was right."""
        return self._artifact(_part_of(self.folder(root)), root)

    @contextmanager
    def part(self, artifact: Artifact) -> Iterator[Part]:
        """The download of these files, begun or gone on with; nobody else may be at it.

        Raises LocalError: in-use, bad-state (no room on the disk for what is missing).
        """
        folder = _part_of(self.folder(artifact.root))
        make_private_directory(folder)
        with _locked(folder), _told_of(folder):
            if not (folder / "listing").exists() or self.listing(artifact.root) is None:
                write_durably(folder / "listing", artifact.encoded)
            part = Part(artifact, folder, self._room)
            try:
                yield part
            finally:
                part.close()

    def keep_manifest(self, root: bytes, envelope: bytes) -> None:
        """Keep an owner's seal beside the weights that it is of, in the place of an older one."""
        folder = self.folder(root) / "manifests"
        manifest = open_manifest(envelope)
        name = hashlib.sha256(
            f"{manifest.owner.text} {manifest.name}@{manifest.version}".encode()
        ).hexdigest()
        make_private_directory(folder)
        if (folder / name).exists() or sum(1 for _ in folder.iterdir()) < MAX_MANIFESTS:
            write_durably(folder / name, envelope)

    def all(self) -> list[Kept]:
        """Everything in the cache, by digest."""
        with _told_of(self.path):
            if not self.path.is_dir():
                return []
            kept = [self._kept(folder) for folder in sorted(self.path.iterdir())]
        return [one for one in kept if one is not None]

    def _kept(self, folder: Path) -> Kept | None:
        whole = folder.suffix != PART
        try:
            root = bytes.fromhex(folder.name.removesuffix(PART))
        except ValueError:
            return None
        artifact = self._artifact(folder, root) if len(root) == 32 else None
        if artifact is None:
            return None
        places = [folder / "files" / file.path for file in artifact.files]
        here = sum(place.stat().st_blocks * 512 for place in places if place.exists())
        return Kept(root, folder, whole, artifact.size, here, _manifests(folder))

    def manifests(self, root: bytes) -> tuple[Sealed, ...]:
        """The owners' seals on that digest."""
        return _manifests(self.folder(root))

    def remove(self, root: bytes) -> int:
        """Remove that digest, whole or not; how many bytes that freed. LocalError (in-use, bad-state)."""
        freed = 0
        for folder in (self.folder(root), _part_of(self.folder(root))):
            if not folder.exists():
                continue
            with _locked(folder), _told_of(folder):
                kept = self._kept(folder)
                freed += kept.here if kept is not None else 0
                gone = folder.with_name(f"{folder.name}{GOING}")
                shutil.rmtree(gone, ignore_errors=True)
                os.replace(folder, gone)  # from here on nobody takes it for whole
                shutil.rmtree(gone)
        return freed


class Part:
    """One download on disk. `have` are the pieces that are here and right, once `look` has said so."""

    def __init__(self, artifact: Artifact, folder: Path, room: Callable[[Path], int]) -> None:
        self._room = room
        self.artifact = artifact
        self.folder = folder
        self._descriptors: dict[str, int] = {}

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def look(self, told: Told = lambda count: None) -> set[int]:
        """Which pieces are here and right. LocalError (bad-state) where there is no room for the others."""
        have: set[int] = set()
        with _told_of(self.folder):
            for file in self.artifact.files:
                self._open(file.path, file.size)
            for index, piece in enumerate(self.artifact.pieces):
                if _in_a_hole(self._descriptors[piece.path], piece):
                    continue
                if piece.check(os.pread(self._descriptors[piece.path], piece.size, piece.offset)):
                    have.add(index)
                told(piece.size)
            self._check_room(sum(p.size for at, p in enumerate(self.artifact.pieces) if at not in have))
        return have

    def _open(self, path: str, size: int) -> None:
        place = self.folder / "files" / path
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._descriptors[path] = os.open(place, flags, 0o600)
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)

    def _check_room(self, missing: int) -> None:
        room = self._room(self.folder)
        if missing and missing + SPARE_BYTES > room:
            raise _full(self.folder, f"{missing:,} bytes are missing, and {room:,} are free")

    def put(self, index: int, data: memoryview) -> bool:
        """Write a piece, if it is right. Raises LocalError (bad-state) where the disk takes no more."""
        piece = self.artifact.pieces[index]
        if not piece.check(data):
            return False
        with _told_of(self.folder):
            at = 0
            while at < piece.size:
                at += os.pwrite(self._descriptors[piece.path], data[at:], piece.offset + at)
        return True

    def finish(self) -> None:
        """All pieces are here: make it so for good, and give it its name."""
        marks: dict[str, Mark] = {}
        with _told_of(self.folder):
            for path, descriptor in self._descriptors.items():
                os.fsync(descriptor)
                marks[path] = Mark.of(os.fstat(descriptor))
            for folder in {place.parent for place in (self.folder / "files").rglob("*")} | {self.folder}:
                _sync_folder(folder)
            _note_checked(self.folder, marks)
            target = self.folder.with_name(self.folder.name.removesuffix(PART))
            shutil.rmtree(target, ignore_errors=True)  # one that was damaged: nothing else can be there
            os.replace(self.folder, target)
            _sync_folder(target.parent)


def spec_of(found: OnDisk) -> Path:
    """What to publish to serve these files: the one file that is the whole model, or else their directory."""
    names = set(found.places)
    for name in names:
        if is_weights(name) and "/" not in name and name.startswith("model."):
            try:
                if set(files_of(found.places[name])) == names:
                    return found.places[name]
            except (OSError, BadArtifact):
                continue
    first = next(iter(found.places))
    return found.places[first].parents[first.count("/")]


def _manifests(folder: Path) -> tuple[Sealed, ...]:
    found: list[Sealed] = []
    try:
        names = sorted((folder / "manifests").iterdir())[:MAX_MANIFESTS]
    except OSError:
        return ()
    for name in names:
        try:
            envelope, _ = read_bounded(name, MAX_MANIFEST_BYTES)
            found.append(Sealed(open_manifest(envelope), envelope))
        except (OSError, BadRecord):
            continue  # damaged: the weights are as good without, and the next pull brings it again
    return tuple(found)


def _part_of(folder: Path) -> Path:
    return folder.with_name(folder.name + PART)


def _in_a_hole(descriptor: int, piece: Piece) -> bool:
    """Whether nothing was ever written there: such pieces need not be read."""
    try:
        return os.lseek(descriptor, piece.offset, os.SEEK_DATA) >= piece.offset + piece.size
    except OSError as error:
        return error.errno == errno.ENXIO  # no data behind it at all; whoever knows no holes reads zeros


def _checked(folder: Path) -> dict[str, Mark]:
    """What was checked, by path; empty where that is not known: then all is hashed again."""
    try:
        marks = open_json(read_bounded(folder / "checked", MAX_CHECKED_BYTES)[0])
        return {str(path): Mark(**fields) for path, fields in marks.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _note_checked(folder: Path, marks: dict[str, Mark]) -> None:
    write_durably(folder / "checked", seal_json({path: asdict(mark) for path, mark in marks.items()}))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else is at this folder; raises LocalError (in-use)."""
    with _told_of(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        name = digest_text(bytes.fromhex(folder.name.removesuffix(PART)))
        raise LocalError(
            Code.IN_USE, f"another command is fetching {name} just now", hint="wait for it to end"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    """What the disk refuses, in words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder, reason(error)) from error
        raise _bad(folder, reason(error)) from error


def _full(folder: Path, why: str) -> LocalError:
    return LocalError(
        Code.BAD_STATE,
        f"no room for the weights in {folder}: {why}",
        hint="make room and pull again, it goes on where it stopped: modelnet-peer pull --list",
    )


def _bad(folder: Path, why: str) -> LocalError:
    hint = f"if it stays so: rm -r {quote(str(folder))}"
    return LocalError(Code.BAD_STATE, f"cannot use {folder}: {why}", hint=hint)
