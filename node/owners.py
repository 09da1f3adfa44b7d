"""Whose model a bare name means: the owner of its first answered call, or the one that was chosen by command.

A name is anybody's to claim. Whoever calls it without saying whose is asked once, if several claim it, and
never moved to another owner afterwards: not even when the remembered one is gone. A call of a version
that only one of them has decides nothing.

One checksummed file per name, replaced whole, each change under a lock on their directory. A command, several
temporary peers and a running one may therefore use one home at once; a change is seen by the next call.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from shlex import quote
from urllib.parse import quote as url_quote
from urllib.parse import unquote as url_unquote

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import check_model_name
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
from modelnet_p2p.query import Query

log = logging.getLogger(__name__)

MAX_OWNERS = 4096  # names of all networks: a person uses hundreds, and `owner list` reads them all
MAX_FILE_BYTES = 4096  # a name, a network and an id take a tenth of it
# that a change waits for another process's; each takes as long as a disk needs to sync. The peer stands
# still meanwhile, so a process that was stopped in the midst of it must not be waited for
LOCK_SECONDS = 0.5

_Stamp = tuple[int, int]  # inode and mtime: every replacement changes it


@dataclass(frozen=True, slots=True)
class Known:
    """A name's remembered owner."""

    network: str
    name: str
    owner: PeerId
    since_unix: int
    chosen: bool  # by `owner trust`; False: since a call was answered

    def to_map(self) -> dict[str, object]:
        """A line of `owner list`."""
        return {
            "model": self.name,
            "owner": self.owner.text,
            "how": "chosen" if self.chosen else "first-use",
            "since_unix": self.since_unix,
        }


class Owners:
    """The remembered owners of one network's model names; without a directory for this object's life only."""

    def __init__(self, network: str, directory: Path | None = None, *, disk: Disk = DISK) -> None:
        self.network = network
        self._directory = directory
        self._disk = disk
        self._read: dict[str, tuple[_Stamp | None, Known | None]] = {}  # by name, as its file was then
        self._contested: dict[str, None] = {}  # names that several claimed when they were last searched for

    def keep_under(self, directory: Path) -> None:
        """From now on remember there, and what is remembered there."""
        self._directory = directory
        self._read.clear()

    def meant(self, query: Query) -> PeerId | None:
        """The owner that a query by bare name means; None: nobody is remembered, or it says so itself.

        Raises LocalError (bad-state) naming a damaged file: whose it was is not decided anew in silence.
        """
        if query.model is None or not _is_bare(query):
            return None
        known = self.known(query.model)
        return known.owner if known else None

    def claimed(self, name: str, owners: Collection[PeerId]) -> None:
        """A search for the whole name has found models of these."""
        self._contested.pop(name, None)
        if len(set(owners)) > 1:
            if len(self._contested) >= MAX_OWNERS:
                del self._contested[next(iter(self._contested))]
            self._contested[name] = None

    def used(self, query: Query, owner: PeerId, now_unix: float) -> None:
        """A call was answered by a model of this owner: the name means it from now on, if it meant none.

        Unless only one version was asked for, and others claim the name.
        """
        if query.model is None or not _is_bare(query):
            return
        if query.model in self._contested and whole_name(query) is not None:
            return
        read = self._read.get(query.model)  # `meant` has looked for this very call
        if read is not None and read[1] is not None:
            return
        known = Known(self.network, query.model, owner, int(now_unix), chosen=False)
        try:
            self._keep(known, replace=False)
        except LocalError as error:  # the call went well, and whoever made it waits for its answer
            log.warning("whose model %s is will be forgotten at the end: %s", known.name, error.message)
            self._hold(known.name, self._stamp(known.name), known)

    def known(self, name: str) -> Known | None:
        """What is remembered of this name; raises LocalError (bad-state) naming a damaged file."""
        stamp = self._stamp(name)
        read = self._read.get(name)
        if read is not None and read[0] == stamp:
            return read[1]
        return self._look(name)

    def trust(self, name: str, owner: PeerId, now_unix: float) -> Known:
        """The name means this owner from now on; raises LocalError (bad-input, bad-state)."""
        if owner.public_key is None:
            raise LocalError(Code.BAD_INPUT, f"{owner} is not the id of an Ed25519 key, and owners have one")
        known = Known(self.network, check_model_name(name), owner, int(now_unix), chosen=True)
        self._keep(known, replace=True)
        return known

    def forget(self, name: str) -> bool:
        """The next call decides anew what the name means; False if nothing was remembered.

        A damaged file is forgotten, too.
        """
        path = self._path(check_model_name(name))
        held = self._read.pop(name, (None, None))[1] is not None
        if path is None:
            return held
        with self._locked():
            found = os.path.lexists(path)
            if found:
                remove_durably(path, disk=self._disk)
        return found or held

    def all(self) -> list[Known]:
        """All that are remembered in this network, by name; LocalError (bad-state) names a damaged file."""
        if self._directory is None:
            found = [known for _, known in self._read.values()]
        else:
            found = [_load(path) for path in self._files()]
        mine = [known for known in found if known is not None and known.network == self.network]
        return sorted(mine, key=lambda known: known.name)

    def _look(self, name: str) -> Known | None:
        path, stamp = self._path(name), self._stamp(name)
        known = _load(path) if path is not None and stamp is not None else None
        if known is not None and (known.network, known.name) != (self.network, name):
            raise _damaged(path, "it belongs to another name")
        self._hold(name, stamp, known)
        return known

    def _keep(self, known: Known, *, replace: bool) -> None:
        """Remember it, unless another process was first and is not to be replaced."""
        path = self._path(known.name)
        if path is None:
            if known.name not in self._read and len(self._read) >= MAX_OWNERS:
                raise LocalError(
                    Code.BAD_STATE, f"this peer remembers the owners of {MAX_OWNERS} names already"
                )
            self._read[known.name] = None, known
            return
        for directory in (path.parent.parent, path.parent):  # `mkdir` gives its mode to the last one only
            make_private_directory(directory)
        with self._locked():
            there = os.path.lexists(path)
            if replace or not there:
                if not there and len(self._files()) >= MAX_OWNERS:
                    words = f"{path.parent} remembers the owners of {MAX_OWNERS} names already"
                    raise LocalError(Code.BAD_STATE, words, hint="modelnet-peer owner list")
                write_durably(path, seal_json(_to_body(known)), disk=self._disk)
            self._look(known.name)

    def _hold(self, name: str, stamp: _Stamp | None, known: Known | None) -> None:
        if self._directory is None and known is None:
            return  # what is not in a file cannot have come meanwhile
        if len(self._read) >= MAX_OWNERS:
            self._read.clear()  # all of it is read again when it is asked for
        self._read[name] = stamp, known

    def _path(self, name: str) -> Path | None:
        return None if self._directory is None else _path_of(self._directory, self.network, name)

    def _stamp(self, name: str) -> _Stamp | None:
        path = self._path(name)
        if path is None:
            return None
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _damaged(path, reason(error)) from error
        return status.st_ino, status.st_mtime_ns

    def _files(self) -> list[Path]:
        if self._directory is None:
            return []
        try:
            paths = [path for path in self._directory.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LocalError(Code.BAD_STATE, f"cannot read {self._directory}: {reason(error)}") from error
        return sorted(path for path in paths if path.suffix == ".json")[:MAX_OWNERS]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the directory meanwhile; raises LocalError (bad-state) if it stays locked."""
        if self._directory is None or not self._directory.is_dir():
            yield
            return
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unchanged(reason(error)) from error
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        assert self._directory is not None
        until = time.monotonic() + LOCK_SECONDS
        try:
            while not _try_lock(descriptor):
                if time.monotonic() > until:
                    raise self._unchanged("another process keeps it locked")
                time.sleep(LOCK_SECONDS / 100)
            for leftover in self._directory.glob(f".*{TEMPORARY}"):
                self._disk.remove(leftover)  # of a process that was killed while writing
        except OSError as error:
            raise self._unchanged(reason(error)) from error

    def _unchanged(self, why: str) -> LocalError:
        return LocalError(Code.BAD_STATE, f"cannot change what {self._directory} remembers: {why}")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@lru_cache(maxsize=1024)  # a caller names the same few again and again
def _path_of(directory: Path, network: str, name: str) -> Path:
    mark = hashlib.sha256(f"{network}\0{name}".encode()).hexdigest()[:16]
    return directory / f"{url_quote(name, safe='')}.{mark}.json"


def trust(owners: Owners, name: str, owner: str) -> dict[str, object]:
    """What `owner trust` does and says; raises LocalError (bad-input, bad-state)."""
    return owners.trust(name, PeerId.parse(owner), time.time()).to_map()


def forget(owners: Owners, name: str) -> dict[str, object]:
    """What `owner forget` does and says; raises NotFound, LocalError (bad-input, bad-state)."""
    if not owners.forget(name):
        raise NotFound(f"no owner of {name!r} is remembered", hint="modelnet-peer owner list")
    return {"model": name, "forgotten": True}


def whole_name(query: Query) -> Query | None:
    """The query for all that bears the name, where this one asks for a version or digest of anybody's."""
    whole = replace(query, version=None, digest=None)
    return whole if _is_bare(query) and whole != query else None


def _is_bare(query: Query) -> bool:
    """Whether it leaves open whose model is meant: who names a provider has chosen."""
    return query.model is not None and query.owner is None and query.provider is None


def _to_body(known: Known) -> dict[str, object]:
    return {
        "network": known.network,
        "model": known.name,
        "owner": known.owner.text,
        "since_unix": known.since_unix,
        "chosen": known.chosen,
    }


def _load(path: Path) -> Known | None:
    """What the file says; None if it is gone."""
    try:
        data, _ = read_bounded(path, MAX_FILE_BYTES)
        body = open_json(data)
        match body:
            case {
                "network": str(network),
                "model": str(name),
                "owner": str(owner),
                "since_unix": int(since),
                "chosen": bool(chosen),
            }:
                return Known(network, name, PeerId.parse(owner), since, chosen)
        raise ValueError("a field is missing or of another type")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(path, reason(error)) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    except LocalError as error:
        raise _damaged(path, error.message) from error


def _damaged(path: Path | None, why: str) -> LocalError:
    name = quote(url_unquote(path.name.rsplit(".", 2)[0])) if path else "MODEL"
    return LocalError(
        Code.BAD_STATE,
        f"cannot use {path}, which says whose model {name} is: {why}",
        hint=f"choose anew: modelnet-peer owner trust {name} OWNER, or: modelnet-peer owner forget {name}",
    )
