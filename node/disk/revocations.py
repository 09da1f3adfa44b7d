"""The revoked keys that a home remembers: one checksummed file for each, replaced whole.

What is in a file proves itself by the seal; the checksum tells damage from forgery. A command, a temporary
peer and a running one may use one directory at once: whoever writes first of a key's end is as right as the
other. A damaged file is named and never passed over: to forget that a key was stolen helps the thief.
"""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from modelnet_p2p.dht.revocations import MAX_REMEMBERED
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.disk.files import (
    DISK,
    TEMPORARY,
    Disk,
    make_private_directory,
    open_json,
    read_bounded,
    reason,
    remove_durably,
    seal_json,
    write_durably,
)
from modelnet_p2p.records import BadRecord, Sealed, open_revocation

MAX_FILES = MAX_REMEMBERED  # more were left by several processes at once
MAX_KEYS = 256  # under which one revocation is told again: the owner of fifty models has some
MAX_FILE_BYTES = 64 << 10  # those keys take a third of it
LEFTOVER_SECONDS = 60.0  # a file is written in milliseconds: after this long its writer was killed


@dataclass(frozen=True, slots=True)
class Kept:
    """One revocation, on whom it is booked, and under which DHT keys this peer tells it."""

    sealed: Sealed
    account: str | None
    told: tuple[bytes, ...] = ()


class RevocationFiles:
    """A home's directory of them; every method raises LocalError (bad-state)."""

    def __init__(self, directory: Path, *, disk: Disk = DISK) -> None:
        self._directory = directory
        self._disk = disk

    def load(self) -> list[Kept]:
        """All of them; the error names a damaged file."""
        try:
            paths = sorted(self._directory.iterdir())
            for leftover in self._directory.glob(f".*{TEMPORARY}"):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    self._disk.remove(leftover)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LocalError(Code.BAD_STATE, f"cannot read {self._directory}: {reason(error)}") from error
        whole = [path for path in paths if path.suffix == ".json" and not path.name.startswith(".")]
        found = (self._load(path) for path in whole[:MAX_FILES])
        return [kept for kept in found if kept is not None]

    def save(self, kept: Kept) -> None:
        """On disk before it returns."""
        for directory in (self._directory.parent, self._directory):  # `mkdir` gives its mode to the last one
            make_private_directory(directory)
        body = {
            "account": kept.account,
            "envelope": base64.b64encode(kept.sealed.envelope).decode(),
            "told": [key.hex() for key in kept.told[:MAX_KEYS]],
        }
        write_durably(self._path(kept.sealed.record.provider), seal_json(body), disk=self._disk)

    def remove(self, key: PeerId) -> None:
        if self._path(key).exists():
            remove_durably(self._path(key), disk=self._disk)

    def _path(self, key: PeerId) -> Path:
        return self._directory / f"{key}.json"

    def _load(self, path: Path) -> Kept | None:
        """None if it is gone."""
        try:
            data, _ = read_bounded(path, MAX_FILE_BYTES)
            match open_json(data):
                case {"account": str() | None as account, "envelope": str(envelope), "told": list(told)}:
                    sealed = open_revocation(base64.b64decode(envelope, validate=True))
                    keys = tuple(bytes.fromhex(str(key)) for key in told[:MAX_KEYS])
                case _:
                    raise ValueError("a field is missing or of another type")
            if self._path(sealed.record.provider) != path:
                raise ValueError("it belongs to another key")
            return Kept(sealed, account, keys)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _damaged(path, reason(error)) from error
        except BadRecord as error:
            raise _damaged(path, error.message) from error
        except (ValueError, binascii.Error) as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> LocalError:
    hint = f"put a good copy in its place, or go on without: mv {quote(str(path))} {quote(f'{path}.damaged')}"
    return LocalError(
        Code.BAD_STATE, f"cannot use {path}, which says that a key was revoked: {why}", hint=hint
    )
