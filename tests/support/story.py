"""One story for three drivers: fifty people join, some publish, some read; who knows what then, who holds it?

The heap of `dht/simulator.py`, trio on the network in memory, and real sockets play it with the same keys.
What is read and who holds what is compared as values, for the times of records differ, and so their seals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.store import OfferStore
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.records import Manifest, OfferRecord, Sealed, seal_manifest

NETWORK = "story"
PEOPLE = tuple(KeyPair(hashlib.sha256(f"person {number}".encode()).digest()) for number in range(50))
HOLDERS = 20  # of a key: Kademlia's k
PAGE_BYTES = 1 << 20  # more than anybody holds under one key here
ENOUGH = 512  # records: more than there are
TASKS = ("text-classification", "summarization", "image-classification")
READERS = (0, 17, 49)


class Fact(NamedTuple):
    """One record, without its times."""

    provider: PeerId
    name: str
    seq: int
    kind: str


@dataclass(slots=True)
class Told:
    """How the story ended, as one driver tells it."""

    read: dict[tuple[int, bytes], frozenset[Fact]] = field(default_factory=dict)  # by reader and key
    held: dict[tuple[bytes, Fact], frozenset[PeerId]] = field(default_factory=dict)  # by which of the closest

    def look_into(self, stores: Mapping[PeerId, OfferStore]) -> None:
        """Who holds what, its provider aside. Whoever lies in a key's region is told beside the closest, and
        how large that is each publisher judges for itself: such holders must be near, and are not counted."""
        held: dict[tuple[bytes, Fact], set[PeerId]] = {}
        for peer, store in stores.items():
            for key in KEYS:
                for fact in facts(store.page(key, b"", PAGE_BYTES).sealeds):
                    held.setdefault((key, fact), set())
                    if peer != fact.provider:
                        held[key, fact].add(peer)
        for (key, fact), peers in held.items():
            self.held[key, fact] = frozenset(peers) & closest(key, fact.provider)
            assert peers <= closest(key, fact.provider, 2 * HOLDERS)


def facts(sealeds: Iterable[Sealed]) -> frozenset[Fact]:
    return frozenset(
        Fact(s.identity.provider, s.identity.name, s.seq, type(s.record).__name__) for s in sealeds
    )


def _draft(number: int) -> tuple[KeyPair, OfferRecord]:
    """The offer of one of those who publish; several serve a model of the same name, each its own."""
    key = PEOPLE[3 * number + 1]
    manifest = Manifest(
        owner=key.id,
        name=f"story/m{number % 5}",
        version="",
        task=TASKS[number % 3],
        licence="mit",
        digest=hashlib.sha256(bytes([number])).digest() if number % 2 else None,
        issued_unix=1_700_000_000,
    )
    tags = ("even",) if number % 2 == 0 else ()
    record = OfferRecord(
        provider=key.id,
        network=NETWORK,
        manifest=manifest,
        manifest_envelope=seal_manifest(manifest, key),
        seq=100 + number,
        issued_us=0,  # set when it is sealed
        expires_us=0,
        tags=tags,
    )
    return key, record


OFFERS = tuple(_draft(number) for number in range(12))


def _keys() -> tuple[bytes, ...]:
    names = Keys(NETWORK)
    found = [names.task(task) for task in TASKS] + [names.tag("even"), names.model("story/nobody")]
    for _, offer in OFFERS:
        found += [names.model(offer.name), names.peer(offer.provider)]
        if offer.digest:
            found.append(names.digest(offer.digest))
    return tuple(provider_key(name) for name in dict.fromkeys(found))


KEYS = _keys()


def expected() -> Told:
    """The truth: every reader reads all that was published, and the closest hold it."""
    names, told = Keys(NETWORK), Told()
    under: dict[bytes, set[Fact]] = {key: set() for key in KEYS}
    for _, offer in OFFERS:
        whole = Fact(offer.provider, offer.name, offer.seq, "OfferRecord")
        exact = [names.model(offer.name), names.peer(offer.provider)]
        exact += [names.digest(offer.digest)] if offer.digest else []
        for name in exact:
            under[provider_key(name)].add(whole)
        for name in [names.task(offer.manifest.task), *(names.tag(tag) for tag in offer.tags)]:
            under[provider_key(name)].add(whole._replace(kind="Card"))
    for key, found in under.items():
        told.read |= {(reader, key): frozenset(found) for reader in READERS}
        for fact in found:
            told.held[key, fact] = closest(key, fact.provider)
    return told


def closest(key: bytes, but: PeerId, count: int = HOLDERS) -> frozenset[PeerId]:
    place = position(key)
    others = sorted(
        (person.id for person in PEOPLE if person.id != but), key=lambda peer: position(peer) ^ place
    )
    return frozenset(others[:count])
