"""What this peer does about revoked keys: learns of them, remembers them, says why, tells others.

A revocation proves that its key is over and nothing else: not whose model a name was, and not who comes next,
for a thief can write one, too. So a successor is named to the person only for an owner that he relied on, and
no name ever moves to it by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TypeVar

import trio

from modelnet_p2p.dht.holding.revocations import PINNED, READ
from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.walks.collecting import Collect
from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.disk.files import DISK, Disk
from modelnet_p2p.node.disk.revocations import MAX_KEYS, Kept, RevocationFiles
from modelnet_p2p.node.notices import Notices
from modelnet_p2p.node.owners import Owners
from modelnet_p2p.query import Query
from modelnet_p2p.records import BadRecord, Record, Revocation, Sealed, admit

log = logging.getLogger(__name__)

MAX_SEEN = 1024  # read about keys that met nothing yet; the oldest make room
MAX_PLACES = 256  # DHT keys of which is remembered what was read there
MAX_NAMED = 3  # revoked keys that one error names
WRITE_PAUSE = 0.1  # seconds between two files about strangers' keys: each costs the disk a sync
MAX_LAST_WRITES = 32  # files written on leaving; what strangers told besides is told again

ANOTHER_KEY = "seal with another key: modelnet-peer owner key FILE, modelnet-peer owner sign --help"
_K = TypeVar("_K")
_V = TypeVar("_V")


class KeyIsOver(NotFound):
    """Nobody offers it, because a key was revoked: no other peer need be asked to know that."""


class Revoking:
    """One peer's."""

    def __init__(self, server: KadServer, owners: Owners, notices: Notices) -> None:
        self._server = server
        self._owners = owners
        self.notices = notices
        self._files: RevocationFiles | None = None
        self._told: dict[PeerId, tuple[bytes, ...]] = {}  # what this peer tells, and under which keys
        self._seen: dict[PeerId, Sealed] = {}
        self._places: dict[bytes, tuple[Sealed, ...]] = {}
        self._announced: set[PeerId] = set()  # of those remembered
        self._unwritten: dict[PeerId, None] = {}
        self._to_write = trio.Event()
        self._listeners: list[Callable[[Sealed], None]] = []

    # --- what is known ---

    def of(self, key: PeerId) -> Sealed | None:
        """The proof that `key` was revoked, if anybody told."""
        return self._server.revocations.of(key) or self._seen.get(key)

    def condemns(self, record: Record) -> bool:
        return self._server.revocations.condemning(record) is not None

    def check(self, key: PeerId, what: str, hint: str = ANOTHER_KEY) -> None:
        """Raises LocalError (forbidden) if `key`, which is `what`, was revoked."""
        proof = self.of(key)
        if proof is not None:
            self.remember(proof, PINNED)
            raise LocalError(
                Code.FORBIDDEN,
                f"{what} {key} was revoked {told_of(proof)}: nobody who has heard of it takes what it seals",
                hint=hint,
            )

    def fate(self, key: PeerId) -> dict[str, object] | None:
        """What a line about this key says of its end."""
        proof = self.of(key)
        return None if proof is None else fate_of(proof)

    def error(self, query: Query, what: str) -> KeyIsOver | None:
        """Why nobody offers `what`, if that is because of a revoked key."""
        for key in (query.owner, self._owners.meant(query), query.provider):
            proof = self.of(key) if key is not None else None
            if proof is not None:
                self.remember(proof, PINNED)  # on disk before the person hears of it
                return _its_key_is_over(query, what, proof)
        found = (self._places.get(query.key(index), ()) for index in query.indexes() if index.kind == "model")
        proofs = [proof for proofs in found for proof in proofs]
        return _a_key_is_over(query, what, proofs) if proofs else None

    # --- hearing of more ---

    def on_learnt(self, listener: Callable[[Sealed], None]) -> None:
        """Call back with each that is newly remembered; quick, and must not raise."""
        self._listeners.append(listener)

    def remember(self, sealed: Sealed, account: str | None) -> bool:
        """Whether it is remembered from now on; what is PINNED is on disk, too, if that takes anything."""
        remembered = self._server.revoke(sealed, account)
        self.look()
        if account is PINNED and sealed.record.provider in self._unwritten:
            self._write_or_warn(sealed.record.provider)
        return remembered

    def look(self) -> None:
        """See what the server has learnt from others; cheap when that is nothing."""
        for key in self._server.revocations.take_news():
            proof = self._server.revocations.of(key)
            self._unwritten[key] = None
            self._to_write.set()
            if proof is None:  # it gave way
                self._announced.discard(key)
            elif key not in self._announced:
                self._announced.add(key)
                self._seen.pop(key, None)
                log.info("the key %s was revoked %s", key.short, told_of(proof))
                for listener in self._listeners:
                    listener(proof)

    def read(self, walk: Collect) -> None:
        """What a walk to one key told: remembered if it is about a record there, else only for the moment."""
        condemned = [proof for sealed in walk.condemned if (proof := walk.proof_against(sealed)) is not None]
        for proof in condemned:
            self.remember(proof, READ)
        for key, proof in walk.proofs.items():
            if self._server.revocations.of(key) is None:
                _put(self._seen, key, proof, MAX_SEEN)
        proofs = {proof.record.provider: proof for proof in (*condemned, *walk.proofs.values())}
        if proofs:
            _put(self._places, walk.target, tuple(proofs.values())[:MAX_NAMED], MAX_PLACES)
        elif walk.records:
            self._places.pop(walk.target, None)

    def hear(self, envelopes: Iterable[bytes], mine: Iterable[PeerId], now_us: int) -> None:
        """Proofs with which holders refused a record that these keys have sealed for me."""
        mine = set(mine)
        for envelope in envelopes:
            try:
                sealed = admit(envelope, network="", now_us=now_us)
            except BadRecord as bad:
                log.info("a holder refused a record as revoked and proved nothing: %s", bad)
                continue
            if isinstance(sealed.record, Revocation) and sealed.record.revoked in mine:
                self.remember(sealed, PINNED)

    def tell(self, sealed: Sealed, keys: Sequence[bytes]) -> tuple[bytes, ...]:
        """Keep, on disk before it returns, that this peer tells it under these keys too; all of them.

        Raises LocalError (bad-state) where the disk takes nothing; it is remembered all the same.
        """
        key = sealed.record.provider
        self._told[key] = tuple(dict.fromkeys((*self._told.get(key, ()), *keys)))[:MAX_KEYS]
        self._server.revoke(sealed, PINNED)
        self.look()
        self._write(key)
        return self._told[key]

    # --- the disk ---

    def keep_under(self, directory: Path, *, disk: Disk = DISK) -> list[Kept]:
        """From now on remember there, and what is remembered there; raises LocalError (bad-state)."""
        files = RevocationFiles(directory, disk=disk)
        kept = files.load()
        for one in kept:
            self._server.revoke(one.sealed, one.account)
            if one.told:
                self._told[one.sealed.record.provider] = one.told
        self.look()
        for one in kept:
            self._unwritten.pop(one.sealed.record.provider, None)
        self._files = files
        return [one for one in kept if one.told]

    async def keep(self) -> None:
        """Write down what strangers told, one after the other, for as long as the peer lives."""
        while True:
            await self._to_write.wait()
            self._to_write = trio.Event()
            while self._files is not None and self._unwritten:
                self._write_or_warn(next(iter(self._unwritten)))
                await trio.sleep(WRITE_PAUSE)

    def leave(self) -> None:
        """Write the last of it."""
        for key in list(self._unwritten)[:MAX_LAST_WRITES] if self._files is not None else ():
            self._write_or_warn(key)

    def _write_or_warn(self, key: PeerId) -> None:
        try:
            self._write(key)
        except LocalError as error:
            self._unwritten.pop(key, None)
            log.warning("that the key %s was revoked is not kept: %s", key.short, error.message)

    def _write(self, key: PeerId) -> None:
        if self._files is None:
            return
        proof = self._server.revocations.of(key)
        if proof is None:
            self._files.remove(key)
        else:
            account = self._server.revocations.account_of(key)
            self._files.save(Kept(proof, account, self._told.get(key, ())))
        self._unwritten.pop(key, None)


def fate_of(sealed: Sealed) -> dict[str, object]:
    """A revocation as commands print it."""
    record = sealed.record
    assert isinstance(record, Revocation)
    return {
        "revoked": record.revoked.text,
        "issued_unix": record.issued_us // 1_000_000,
        "reason": record.reason,
        "successor": record.successor.text if record.successor else None,
    }


def told_of(sealed: Sealed) -> str:
    """`on 2026-11-29: stolen`."""
    record = sealed.record
    assert isinstance(record, Revocation)
    day = f"{datetime.fromtimestamp(record.issued_us // 1_000_000, UTC):%Y-%m-%d}"
    return f"on {day}: {record.reason}" if record.reason else f"on {day}"


def _its_key_is_over(query: Query, what: str, proof: Sealed) -> KeyIsOver:
    """For a model of an owner, or at a provider, that was meant."""
    record = proof.record
    assert isinstance(record, Revocation)
    whose = "the peer that is asked for" if record.revoked == query.provider else "its owner"
    words = f"nobody offers {what!r}: the key of {whose}, {record.revoked}, was revoked {told_of(proof)}"
    name = quote(query.model or "MODEL")
    if record.successor is None:
        hint = f"once its owner has told you a new one: modelnet-peer owner trust {name} OWNER"
    else:
        hint = (
            f"the revocation names {record.successor} as its successor, which a thief of the key could, too;"
            f" if you know it to be so: modelnet-peer owner trust {name} {record.successor}"
        )
    return KeyIsOver(words, hint=hint)


def _a_key_is_over(query: Query, what: str, proofs: Sequence[Sealed]) -> KeyIsOver:
    """For a name of which nobody is remembered: that such a key was its owner's is not proven."""
    told = "; ".join(f"{proof.record.provider} {told_of(proof)}" for proof in proofs)
    keys = "a key was" if len(proofs) == 1 else "keys were"
    return KeyIsOver(
        f"nobody offers {what!r}; under this name {keys} revoked: {told}",
        hint="ask the model's owner for the key that is used now, and name it:"
        f" modelnet-peer owner trust {quote(query.model or 'MODEL')} OWNER",
    )


def _put(table: dict[_K, _V], key: _K, value: _V, limit: int) -> None:
    """Put it in as the newest; the oldest makes room."""
    table.pop(key, None)
    if len(table) >= limit:
        del table[next(iter(table))]
    table[key] = value
