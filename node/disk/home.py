"""Where a peer keeps what is its own: `identity.key`, `config.toml`, `peers.json`, and four directories:
`state/`, `owners/`, `revocations/` and `cache/`.

One directory holds everything, so that moving or deleting a peer is moving or deleting that
directory. The key file is libp2p's own protobuf form of an Ed25519 private key: seed and public
key, so that damage at any byte is noticed, and other libp2p tools can read it. A key that cannot
be read is an error that names the file; it is never made anew, for a new key is another peer.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import SEED_BYTES, KeyPair
from modelnet_p2p.node.disk.files import (
    DISK,
    TEMPORARY,
    Disk,
    make_private_directory,
    read_bounded,
    reason,
    write_durably,
)

# protobuf PrivateKey {1: Type = Ed25519 (1), 2: Data = 64 bytes: seed, public key}
_KEY_HEADER = bytes.fromhex("08011240")
KEY_BYTES = len(_KEY_HEADER) + 2 * SEED_BYTES
MAX_PEERS = 64  # addresses kept in peers.json: all are dialled at once by a start that finds nobody else
MAX_PEERS_BYTES = 64 << 10  # of that file: as many of the longest addresses, 512 characters each, and more


@dataclass(frozen=True, slots=True)
class Home:
    """One peer's directory. Making the value touches nothing; `load_or_make_key` makes the directory."""

    path: Path

    def __init__(self, path: Path | str) -> None:
        object.__setattr__(self, "path", Path(path).expanduser().absolute())

    @property
    def key_path(self) -> Path:
        return self.path / "identity.key"

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def state_path(self) -> Path:
        return self.path / "state"

    @property
    def peers_path(self) -> Path:
        return self.path / "peers.json"

    @property
    def owners_path(self) -> Path:
        """Whose models bare names mean; not part of the state: it outlives a key, and needs none."""
        return self.path / "owners"

    @property
    def revocations_path(self) -> Path:
        """Which keys were revoked; no part of the state, as the owners are none."""
        return self.path / "revocations"

    @property
    def cache_path(self) -> Path:
        """Weights that came from others; all of it may be deleted and fetched again."""
        return self.path / "cache"

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    @property
    def control_path(self) -> Path:
        """A line of text: where the running peer's control socket is."""
        return self.path / "control"

    def load_or_make_key(self, *, disk: Disk = DISK) -> KeyPair:
        """The peer's key, made on first use (mode 0600); raises LocalError (bad-state) naming the file.

        A missing key beside remembered state is an error too: the state belongs to the lost one.
        """
        key = self.load_key()
        if key is not None:
            return key
        make_private_directory(self.path)
        with self._locked_directory():
            key = self.load_key()  # another process may have made it meanwhile
            for leftover in self.path.glob(f".{self.key_path.name}.*{TEMPORARY}"):
                disk.remove(leftover)  # of a process that was killed while making one
            if key is None:
                self._refuse_orphaned_state()
                key = KeyPair(os.urandom(SEED_BYTES))
                write_durably(self.key_path, encode_key(key), disk=disk)
        return key

    def load_key(self) -> KeyPair | None:
        """The peer's key, None where there is none yet; LocalError (bad-state) on any other trouble."""
        return read_key(self.key_path)

    def load_peers(self, network: str) -> tuple[str, ...]:
        """Where peers of that network were (`…/p2p/ID`); LocalError (bad-state) for a damaged file."""
        try:
            data, _ = read_bounded(self.peers_path, MAX_PEERS_BYTES)
            saved = json.loads(data)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._bad_peers(reason(error)) from error
        except (ValueError, RecursionError) as error:
            raise self._bad_peers("it is damaged") from error
        addrs = saved.get("addrs") if isinstance(saved, dict) else None
        if not isinstance(addrs, list):
            raise self._bad_peers("it is damaged")
        if saved.get("network") != network:
            return ()
        return tuple(addr for addr in addrs[:MAX_PEERS] if isinstance(addr, str))

    def save_peers(self, network: str, addrs: Sequence[str]) -> None:
        """Keep these peers' addresses, one or several each, for the next start (at most 64)."""
        saved = {"network": network, "addrs": list(addrs[:MAX_PEERS])}
        write_durably(self.peers_path, json.dumps(saved, indent=1).encode())

    def _refuse_orphaned_state(self) -> None:
        if self.state_path.is_dir() and any(self.state_path.rglob("*.json")):
            raise self._bad_key(
                f"it is missing, but {self.state_path} remembers what it published",
                hint=f"put it back, or start afresh: mv {quote(str(self.path))} {quote(f'{self.path}.old')}",
            )

    @contextmanager
    def _locked_directory(self) -> Iterator[None]:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _bad_peers(self, why: str) -> LocalError:
        path = self.peers_path
        return LocalError(Code.BAD_STATE, f"cannot use {path}: {why}", hint=f"rm {quote(str(path))}")

    def _bad_key(self, why: str, hint: str = "") -> LocalError:
        return _bad_key(self.key_path, why, hint)


def read_key(path: Path) -> KeyPair | None:
    """The key in that file, None where there is none; LocalError (bad-state) on any other trouble."""
    try:
        # followed: secret stores hand out their files as links
        data, status = read_bounded(path, 4096, follow=True)
    except FileNotFoundError:
        if path.is_symlink():
            raise _bad_key(path, "it is a link to nothing") from None
        return None
    except OSError as error:
        raise _bad_key(path, reason(error)) from error
    if status.st_mode & 0o077:
        raise _bad_key(path, "other users may read it", hint=f"chmod 600 {quote(str(path))}")
    try:
        return decode_key(data)
    except ValueError as error:
        raise _bad_key(path, str(error)) from error


def _bad_key(path: Path, why: str, hint: str = "") -> LocalError:
    hint = hint or "put a good copy in its place, or be another peer with another home: --home DIR"
    return LocalError(Code.BAD_STATE, f"cannot use the key {path}: {why}", hint=hint)


def encode_key(key: KeyPair) -> bytes:
    """A key as libp2p's PrivateKey protobuf, 68 bytes."""
    return _KEY_HEADER + key.seed + (key.id.public_key or b"")


def decode_key(data: bytes) -> KeyPair:
    """The inverse of `encode_key`; raises ValueError where size, kind or public key are wrong."""
    if len(data) != KEY_BYTES:
        raise ValueError(f"it has {len(data)} bytes instead of {KEY_BYTES}")
    if not data.startswith(_KEY_HEADER):
        raise ValueError("it is not an Ed25519 key")
    key = KeyPair(data[len(_KEY_HEADER) :][:SEED_BYTES])
    if encode_key(key) != data:
        raise ValueError("its two halves do not belong together")
    return key
