"""An owner's key file, his seal on a model that many serve, and the end of a key.

The owner need not be a peer. What travels to the providers is the sealed manifest, which is no secret; the
key stays where it was made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import SEED_BYTES, KeyPair, PeerId
from modelnet_p2p.names import ModelUri, parse_digest
from modelnet_p2p.node.disk.files import read_bounded, reason, write_durably
from modelnet_p2p.node.disk.home import KEY_BYTES, decode_key, encode_key, read_key
from modelnet_p2p.records import (
    MAX_MANIFEST_BYTES,
    MAX_REVOCATION_BYTES,
    BadRecord,
    Manifest,
    Revocation,
    open_manifest,
    open_revocation,
    seal_manifest,
    seal_revocation,
)

MAX_BESIDE = 4096  # files of a directory that are looked at for a hint
MAX_NAMED = 4  # keys in it


def make_key(path: Path) -> KeyPair:
    """A new owner's key, mode 0600, in the place of none; raises LocalError (in-use, bad-state)."""
    if os.path.lexists(path):
        hint = "choose another name: a key that is replaced is lost, and with it all that it owns"
        raise LocalError(Code.IN_USE, f"{path} is there already", hint=hint)
    key = KeyPair(os.urandom(SEED_BYTES))
    write_durably(path, encode_key(key))
    return key


def load_key(path: Path) -> KeyPair:
    """The owner's key in that file; raises LocalError (bad-input, bad-state)."""
    key = read_key(path)
    if key is None:
        raise LocalError(Code.BAD_INPUT, f"there is no key {path}", hint=_keys_beside(path))
    return key


def _keys_beside(path: Path) -> str:
    """For who mistyped a path: a new key would be another owner, which has sealed nothing."""
    found: list[str] = []
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in islice(entries, MAX_BESIDE):
            if entry.is_file() and entry.stat().st_size == KEY_BYTES:
                with suppress(OSError, ValueError):
                    decode_key(read_bounded(Path(entry), KEY_BYTES, follow=True)[0])
                    found.append(str(path.parent / entry.name))
    if found:
        return f"keys there: {', '.join(map(quote, sorted(found)[:MAX_NAMED]))}"
    return f"give the path of the file that `owner key` has made: none lies in {path.parent}"


def seal_described(
    described: Mapping[str, Any],  # Any: what a dry run of `publish` said
    key: KeyPair,
    licence: str | None,
    now_unix: int,
) -> bytes:
    """The seal of `key`'s owner on a model that a dry run has described; raises LocalError (bad-input)."""
    uri = ModelUri.parse(str(described["model"]))
    digest = described.get("digest")
    manifest = Manifest(
        owner=key.id,
        name=uri.name,
        version=uri.version,
        task=str(described["task"]),
        licence=str(described.get("licence") or "") if licence is None else licence,
        digest=None if digest is None else parse_digest(str(digest)),
        issued_unix=now_unix,
    )
    return seal_manifest(manifest, key)


def read_manifest(path: Path | str) -> bytes:
    """The sealed manifest in that file; raises LocalError (bad-input) for anything that is none."""
    try:
        envelope, _ = read_bounded(Path(path), MAX_MANIFEST_BYTES, follow=True)
    except OSError as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read the manifest {path}: {reason(error)}") from error
    sealed_manifest(envelope, f" in {path}")
    return envelope


def sealed_manifest(envelope: bytes, where: str = "") -> Manifest:
    """What the owner has sealed; raises LocalError (bad-input)."""
    try:
        return open_manifest(envelope)
    except BadRecord as error:
        raise LocalError(
            Code.BAD_INPUT,
            f"no owner's seal{where}: {error.message}",
            hint="modelnet-peer owner sign --help says how an owner makes one",
        ) from error


def seal_end(key: KeyPair, words: str, successor: str | None, now_us: int) -> bytes:
    """The sealed revocation of `key`; raises LocalError (bad-input)."""
    next_one = None if successor is None else PeerId.parse(successor)
    return seal_revocation(Revocation(key.id, now_us, words, next_one), key).envelope


def read_end(path: Path) -> bytes:
    """The sealed revocation in that file; raises LocalError (bad-input) for anything that is none."""
    try:
        envelope, _ = read_bounded(path, MAX_REVOCATION_BYTES, follow=True)
        open_revocation(envelope)
    except OSError as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read the revocation {path}: {reason(error)}") from error
    except BadRecord as error:
        hint = "modelnet-peer owner revoke --key FILE --out FILE makes one"
        raise LocalError(Code.BAD_INPUT, f"no revocation in {path}: {error.message}", hint=hint) from error
    return envelope


def full_name(manifest: Manifest) -> str:
    """`name`, or `name@version`."""
    return f"{manifest.name}@{manifest.version}" if manifest.version else manifest.name
