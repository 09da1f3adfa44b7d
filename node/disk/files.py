"""Small files that survive a crash: whole old or whole new, whatever instruction was the last one.

Written to a temporary neighbour, synced, renamed over the name, and the directory synced; read
with a bound on size and without following what a stranger may have put in the way. `Disk` holds
the operations that can be interrupted, so that tests stop at each of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from modelnet_p2p.errors import Code, LocalError

TEMPORARY = ".tmp"  # suffix of a file that is not finished; its writer or the next start removes it
_HEADER = b"modelnet-state 1 "
_DIGEST_CHARS = 64


class Disk:
    """The operations of a durable write, one method each; a test stops at any of them."""

    def create(self, path: Path, mode: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, mode)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


DISK = Disk()


def write_durably(path: Path, data: bytes, *, mode: int = 0o600, disk: Disk = DISK) -> None:
    """Replace `path` by `data`, whole or not at all; LocalError (bad-state) on a full or failing disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        descriptor = disk.create(temporary, mode)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[disk.write(descriptor, rest) :]
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(temporary, path)
        disk.sync_directory(path.parent)
    except OSError as error:
        try:
            disk.remove(temporary)
        except OSError:
            pass  # the first error is the one to tell
        raise LocalError(Code.BAD_STATE, f"cannot write {path}: {reason(error)}") from error


def remove_durably(path: Path, *, disk: Disk = DISK) -> None:
    """Remove `path`, if it is there, so that a crash does not bring it back."""
    try:
        disk.remove(path)
        disk.sync_directory(path.parent)
    except OSError as error:
        raise LocalError(Code.BAD_STATE, f"cannot remove {path}: {reason(error)}") from error


def read_bounded(path: Path, limit: int, *, follow: bool = False) -> tuple[bytes, os.stat_result]:
    """At most `limit` bytes of a regular file, and its stat; OSError otherwise (FileNotFoundError as usual).

    A FIFO or a device in the file's place neither blocks nor is read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(f"it has more than {limit} bytes")
    return data, status


def make_private_directory(path: Path) -> None:
    """`path` and its parents, for its owner alone; raises LocalError (bad-state) naming it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(
            Code.BAD_STATE,
            f"cannot make the directory {path}: {reason(error)}",
            hint="choose another: --home DIR",
        ) from error


def seal_json(value: dict[str, Any]) -> bytes:  # JSON: any value that json takes
    """A JSON object behind a line with its SHA-256, so that damage at any byte shows."""
    body = json.dumps(value, sort_keys=True, indent=1).encode()
    return _HEADER + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def open_json(data: bytes) -> dict[str, Any]:
    """What `seal_json` was given; raises ValueError, with the reason in words, on anything damaged."""
    head, newline, body = data.partition(b"\n")
    if not newline or len(head) != len(_HEADER) + _DIGEST_CHARS or not head.startswith(_HEADER):
        raise ValueError("its first line is damaged")
    if head[len(_HEADER) :] != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its checksum does not match")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def reason(error: OSError) -> str:
    """The words of an OSError without its errno and path."""
    return error.strerror or str(error)
