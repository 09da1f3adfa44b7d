"""What a peer keeps for others: sealed records under keys, bounded on every side, in a fair order.

Everything in here was admitted before: its seals hold and its key is its own. This page decides only
whether there is room, which of two versions stays, and in which order readers get them. Readers see the
IP groups of the senders in turns (first record of each group, then the second of each), so that a
thousand records from one network come after the first of every other.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from operator import attrgetter
from typing import TypeVar

from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.records import Identity, Refusal, Revocation, Sealed, newest

CURSOR_BYTES = 12  # turn (4) and tie-break (8) of the last record given
RECORD_OVERHEAD = 4  # protobuf's tag and length around a record
CONTACT_OVERHEAD = 16  # ... around a contact; ADDR_OVERHEAD around each of its addresses
ADDR_OVERHEAD = 4

T = TypeVar("T")
_by_order = attrgetter("order")


class Full(StrEnum):
    """Why there is no room; the strings are what field 66 of the reply says."""

    KEY = "split"  # the publisher goes on to its shard of the key
    PROVIDER = "full_provider"
    GROUP = "full_group"
    TOTAL = "full"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept; a record costs up to 4 KiB as bytes and some 4 KiB decoded."""

    per_key: int = 4096  # cards of one task: 64 pages, which a reader still reads through
    per_provider: int = 1024  # in a small world one peer holds all of another's: 64 models of 16 keys
    per_provider_and_key: int = 128  # models that one peer publishes under one task: a thirtieth of a key
    per_group_and_key: int = 256  # a sixteenth of a key: no single network can fill one
    per_group: int = 4096  # an eighth of everything
    total: int = 32_768  # 256 MiB at the very worst, some 40 MiB of ordinary cards
    keys: int = 16_384


@dataclass(slots=True, eq=False)
class Held:
    """One record in its place; its order among the others of its key never changes."""

    sealed: Sealed
    contact: Contact  # where its provider said it is
    group: str | None
    order: tuple[int, bytes]  # its turn, and a tie-break

    def move(self, contact: Contact) -> None:
        self.contact = contact if contact.addrs else self.contact


@dataclass(slots=True)
class Shelf:
    """The records of one key."""

    held: dict[Identity, Held] = field(default_factory=dict)
    order: list[Held] = field(default_factory=list)  # by their order
    envelopes: dict[bytes, Identity] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    providers: dict[PeerId, int] = field(default_factory=dict)
    split_until_us: int = 0  # as long as a record lives that had to go on to a shard


@dataclass(frozen=True, slots=True)
class Page:
    sealeds: tuple[Sealed, ...]
    contacts: tuple[Contact, ...]  # of the providers of these records, withdrawn ones left out
    cursor: bytes  # what to ask for next; empty after the last page


class BadCursor(ValueError):
    """A cursor that no page of ours ended with."""


def contact_bytes(contact: Contact) -> int:
    """At most this much a contact takes on the wire."""
    return CONTACT_OVERHEAD + len(contact.id) + sum(len(addr) + ADDR_OVERHEAD for addr in contact.addrs)


class OfferStore:
    """The records that this peer holds for the network."""

    def __init__(self, bounds: Bounds | None = None, secret: bytes = b"") -> None:
        """`secret` decides between records of one turn: nobody can grind one that comes first everywhere."""
        self.bounds = bounds or Bounds()
        self._secret = secret
        self._shelves: dict[bytes, Shelf] = {}
        self._providers: dict[PeerId, int] = {}
        self._groups: dict[str, int] = {}
        self._signers: dict[PeerId, int] = {}  # providers and owners of models
        self._expiry: list[
            tuple[int, bytes, Identity]
        ] = []  # a heap; entries of replaced versions are skipped
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def keys(self) -> int:
        return len(self._shelves)

    def renew(self, key: bytes, envelope: bytes, contact: Contact) -> bool:
        """Whether exactly these bytes of this provider lie here: an equal republish needs no second check.

        It renews nothing but the provider's addresses.
        """
        shelf = self._shelves.get(key)
        identity = shelf.envelopes.get(envelope) if shelf else None
        if shelf is None or identity is None or identity.provider != contact.id:
            return False
        shelf.held[identity].move(contact)
        return True

    def add(
        self, key: bytes, sealed: Sealed, contact: Contact, group: str | None = None
    ) -> Refusal | Full | None:
        """Keep an admitted record under `key`; None if it is now (or already was) kept.

        The same bytes again are acknowledged and renew nothing but the provider's addresses. An older
        version, or another record with the sequence of the one held, is stale. `group` is that of the
        direct sender.
        """
        shelf, identity = self._shelves.get(key) or Shelf(), sealed.identity
        old = shelf.held.get(identity)
        if old is not None:
            if old.sealed.envelope == sealed.envelope:
                old.move(contact)
                if sealed.expires_us > old.sealed.expires_us:  # a revocation, which says no end itself
                    old.sealed = sealed
                    heapq.heappush(self._expiry, (sealed.expires_us, key, identity))
                return None
            if newest(old.sealed, sealed) is not sealed:
                return Refusal.STALE
            del shelf.envelopes[old.sealed.envelope]
            shelf.envelopes[sealed.envelope] = identity
            old.sealed = sealed
            old.move(contact)
        elif (full := self._no_room(key, shelf, sealed, group)) is not None:
            return full
        else:
            held = Held(sealed, contact, group, self._order(shelf, identity, group))
            self._put(key, shelf, identity, held)
        heapq.heappush(self._expiry, (sealed.expires_us, key, identity))
        if len(self._expiry) > 2 * self._size + 1024:  # forget what newer versions left behind, now and then
            self._expiry = [(sealed.expires_us, at, sealed.identity) for at, sealed in self.records()]
            heapq.heapify(self._expiry)
        return None

    def page(self, key: bytes, cursor: bytes, max_bytes: int) -> Page:
        """The next records under `key`, as many as fit `max_bytes` with their contacts, and at least one.

        Raises BadCursor. A cursor says a place in the order and no more, so it outlives the record it names.
        """
        if cursor and len(cursor) != CURSOR_BYTES:
            raise BadCursor(f"a cursor has {CURSOR_BYTES} bytes, not {len(cursor)}")
        shelf = self._shelves.get(key)
        if shelf is None:
            return Page((), (), b"")
        start = 0
        if cursor:
            after = (int.from_bytes(cursor[:4]), cursor[4:])
            start = bisect_right(shelf.order, after, key=_by_order)
        sealeds: list[Sealed] = []
        contacts: dict[PeerId, Contact] = {}
        size, last = 0, None
        for held in islice(shelf.order, start, None):
            sealed, contact = held.sealed, held.contact
            size += len(sealed.envelope) + RECORD_OVERHEAD
            tells = contact.id not in contacts and not sealed.is_tombstone
            size += contact_bytes(contact) if tells else 0
            if last is not None and size > max_bytes:
                turn, tie_break = last.order
                return Page(tuple(sealeds), tuple(contacts.values()), turn.to_bytes(4) + tie_break)
            sealeds.append(sealed)
            if tells:
                contacts[contact.id] = contact
            last = held
        return Page(tuple(sealeds), tuple(contacts.values()), b"")

    def is_split(self, key: bytes, now_us: int) -> bool:
        """Whether records of this key were sent on to its shards, and may live there still."""
        shelf = self._shelves.get(key)
        return shelf is not None and shelf.split_until_us > now_us

    def expire(self, now_us: int) -> int:
        """Drop what is over; how many there were."""
        dropped = 0
        while self._expiry and self._expiry[0][0] <= now_us:
            expires_us, key, identity = heapq.heappop(self._expiry)
            shelf = self._shelves.get(key)
            held = shelf.held.get(identity) if shelf else None
            if shelf is not None and held is not None and held.sealed.expires_us == expires_us:
                self._drop(key, shelf, identity, held)
                dropped += 1
        return dropped

    def find(self, key: bytes, identity: Identity) -> Sealed | None:
        """What lies under `key` of that identity."""
        shelf = self._shelves.get(key)
        held = shelf.held.get(identity) if shelf else None
        return held.sealed if held else None

    def signs(self, signer: PeerId) -> bool:
        """Whether it provides or owns anything here."""
        return signer in self._signers

    def banish(self, signer: PeerId) -> list[tuple[bytes, str | None]]:
        """Drop all that `signer` provides or owns; under which keys, and from which groups, it lay here."""
        if not self.signs(signer):
            return []
        condemned = [
            (key, shelf, held)
            for key, shelf in self._shelves.items()
            for held in shelf.held.values()
            if signer in held.sealed.identity[:2] and not isinstance(held.sealed.record, Revocation)
        ]
        for key, shelf, held in condemned:
            self._drop(key, shelf, held.sealed.identity, held)
        return [(key, held.group) for key, _, held in condemned]

    def records(self) -> Iterable[tuple[bytes, Sealed]]:
        """Everything held, with its key."""
        return ((key, held.sealed) for key, shelf in self._shelves.items() for held in shelf.held.values())

    def _no_room(self, key: bytes, shelf: Shelf, sealed: Sealed, group: str | None) -> Full | None:
        bounds, provider = self.bounds, sealed.identity.provider
        if self._size >= bounds.total or (not shelf.held and len(self._shelves) >= bounds.keys):
            return Full.TOTAL
        if (
            self._providers.get(provider, 0) >= bounds.per_provider
            or shelf.providers.get(provider, 0) >= bounds.per_provider_and_key
        ):
            return Full.PROVIDER
        if group is not None and (
            self._groups.get(group, 0) >= bounds.per_group
            or shelf.groups.get(group, 0) >= bounds.per_group_and_key
        ):
            return Full.GROUP
        if len(shelf.held) >= bounds.per_key and not self._yielded(key, shelf, sealed, group):
            return Full.KEY
        return None

    def _yielded(self, key: bytes, shelf: Shelf, newcomer: Sealed, group: str | None) -> bool:
        """Whether a full key made room: the last turn there yields to an earlier one.

        So sixteen networks that fill a key keep no other network's first record out of it. Whoever has to go,
        the newcomer or the last, is sent on to a shard.
        """
        last = shelf.order[-1]
        yields = self._order(shelf, newcomer.identity, group)[0] < last.order[0]
        gone = last.sealed if yields else newcomer
        shelf.split_until_us = max(shelf.split_until_us, gone.expires_us)
        if yields:
            self._drop(key, shelf, last.sealed.identity, last)
        return yields

    def _order(self, shelf: Shelf, identity: Identity, group: str | None) -> tuple[int, bytes]:
        """Its turn in its group (a provider of no known group is one of its own), and a tie-break."""
        own = shelf.providers.get(identity.provider, 0)
        return own if group is None else shelf.groups.get(group, 0), self._mixed(identity)

    def _mixed(self, identity: Identity) -> bytes:
        """The same for this identity always, and for another one as good as never."""
        provider, owner, name, version, part = identity
        words = "\0".join((name, version, part)).encode()  # printable, all of them
        hashed = hashlib.sha256(b"".join((self._secret, provider, owner, words)))
        return hashed.digest()[: CURSOR_BYTES - 4]

    def _put(self, key: bytes, shelf: Shelf, identity: Identity, held: Held) -> None:
        self._shelves[key] = shelf
        shelf.held[identity] = held
        shelf.envelopes[held.sealed.envelope] = identity
        insort(shelf.order, held, key=_by_order)
        self._count(shelf, identity, held.group, 1)

    def _drop(self, key: bytes, shelf: Shelf, identity: Identity, held: Held) -> None:
        del shelf.held[identity]
        del shelf.envelopes[held.sealed.envelope]
        at = bisect_left(shelf.order, held.order, key=_by_order)
        while shelf.order[at] is not held:  # chance alone has two of one order
            at += 1
        del shelf.order[at]
        self._count(shelf, identity, held.group, -1)
        if not shelf.held:
            del self._shelves[key]

    def _count(self, shelf: Shelf, identity: Identity, group: str | None, step: int) -> None:
        self._size += step
        for providers in (self._providers, shelf.providers):
            _add(providers, identity.provider, step)
        if identity.name:  # a revocation has none
            for signer in {identity.provider, identity.owner}:
                _add(self._signers, signer, step)
        if group is not None:
            for groups in (self._groups, shelf.groups):
                _add(groups, group, step)


def _add(counts: dict[T, int], one: T, step: int) -> None:
    """Nobody is kept who has none: strangers come and go."""
    if count := counts.get(one, 0) + step:
        counts[one] = count
    else:
        del counts[one]
