"""Copies of a hot key: who may leave them, how long they live, and what they never do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from modelnet_p2p.dht.holding.cache import (
    KEYS_PER_GROUP,
    KEYS_PER_SENDER,
    LEAST_LIFE_SECONDS,
    LIFE_SECONDS,
    MAX_KEYS,
    MAX_RECORDS,
    Cache,
)
from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import OfferStore
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message, decode, encode
from modelnet_p2p.records import Refusal, Revocation, Sealed, seal_revocation

if TYPE_CHECKING:
    from tests.dht.conftest import Person

CAROL = PeerId(b"carol")


def put(
    cache: Cache,
    key: bytes,
    sealed: Sealed,
    *,
    sender: PeerId = CAROL,
    group: str | None = None,
    farther: int = 0,
    now: float = 0.0,
) -> bool:
    contact = Contact(sealed.identity.provider)
    return cache.put(key, sealed, contact, sender=sender, group=group, farther=farther, now=now)


def copies(key: bytes, *records: bytes) -> Message:
    return Message(Kind.ADD_PROVIDER, key, records=records, cached=True)


@pytest.fixture
def server(bob: Person) -> KadServer:
    return KadServer(bob.id, "public", RoutingTable(bob.id, 20), OfferStore())


def test_a_copy_dies_in_its_time_however_often_it_is_handed_in_and_sooner_far_away(alice: Person) -> None:
    near, far, cache = b"near", b"far", Cache()
    put(cache, near, alice.offer())
    put(cache, far, alice.offer(), farther=100)
    for second in range(int(LIFE_SECONDS)):
        assert put(cache, near, alice.offer(), now=float(second))
        assert (cache.get(far, float(second)) != ((), ())) == (second < LEAST_LIFE_SECONDS)
    assert cache.get(near, LIFE_SECONDS - 0.1)[0] == (alice.offer(),)
    assert cache.get(near, LIFE_SECONDS) == ((), ())
    assert len(cache) == 0


def test_an_older_version_never_replaces_a_newer_one_nor_a_withdrawal(alice: Person) -> None:
    cache, old, new = Cache(), alice.offer(seq=1), alice.offer(seq=2)
    for sealed in (old, new, old):
        put(cache, b"key", sealed)
    assert cache.get(b"key", 0.0)[0] == (new,)


def test_one_reader_or_one_network_fills_its_share_and_all_together_no_more_than_there_is(
    alice: Person,
) -> None:
    offer = alice.offer()
    one, net, all_ = Cache(), Cache(), Cache()
    kept = [put(one, bytes([n]), offer) for n in range(KEYS_PER_SENDER + 5)]
    assert kept.count(True) == len(one) == KEYS_PER_SENDER
    for n in range(2 * MAX_KEYS):
        put(net, n.to_bytes(2), offer, sender=PeerId(b"peer" + n.to_bytes(2)), group="203.0.113.0/24")
        put(all_, n.to_bytes(2), offer, sender=PeerId(b"peer" + n.to_bytes(2)))
    assert (len(net), len(all_)) == (KEYS_PER_GROUP, MAX_KEYS)
    assert put(one, b"later", offer, now=LIFE_SECONDS)  # what it had left is over


def test_a_key_has_so_many_copies_and_a_newer_version_still_finds_room(
    person: Callable[[str], Person], alice: Person
) -> None:
    cache = Cache()
    assert put(cache, b"key", alice.offer(seq=1))
    for n in range(MAX_RECORDS + 3):
        put(cache, b"key", person(f"peer {n}").offer())
    assert put(cache, b"key", alice.offer(seq=2))
    held, _ = cache.get(b"key", 0.0)
    assert len(held) == MAX_RECORDS
    assert alice.offer(seq=2) in held


def test_a_reader_leaves_copies_that_are_told_as_copies_and_never_as_held(
    server: KadServer, alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    offer = alice.offer()
    handed = Message(
        Kind.ADD_PROVIDER, model_key, (), (alice.contact,), records=(offer.envelope,), cached=True
    )
    handed = decode(encode(handed))
    assert handed.cached
    assert server.handle(handed, carol.id, None, 0.0, now_us) == Message(
        Kind.ADD_PROVIDER, model_key, records=()
    )
    reply = server.handle(Message(Kind.GET_PROVIDERS, model_key), carol.id, None, 1.0, now_us)
    assert reply is not None
    assert (reply.cached, reply.records, reply.providers) == (True, (offer.envelope,), (alice.contact,))
    assert len(server.store) == 0


def test_copies_bring_nothing_back_that_a_holder_knows_to_be_replaced_or_withdrawn(
    server: KadServer, alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    old, new = alice.offer(seq=1), alice.offer(seq=2)
    server.handle(copies(model_key, old.envelope), carol.id, None, 0.0, now_us)
    add = Message(Kind.ADD_PROVIDER, model_key, providers=(alice.contact,), records=(new.envelope,))
    server.handle(add, alice.id, None, 1.0, now_us)
    assert len(server.cache) == 0
    server.handle(copies(model_key, old.envelope), carol.id, None, 2.0, now_us)
    reply = server.handle(Message(Kind.GET_PROVIDERS, model_key), carol.id, None, 3.0, now_us)
    assert reply is not None
    assert (reply.cached, reply.records) == (False, (new.envelope,))
    assert len(server.cache) == 0


def test_forged_foreign_and_too_many_copies_are_refused(
    server: KadServer, alice: Person, carol: Person, model_key: bytes, task_key: bytes, now_us: int
) -> None:
    envelope = alice.offer().envelope
    forged = envelope[:-1] + bytes([envelope[-1] ^ 1])

    def refusal(message: Message) -> str:
        reply = server.handle(message, carol.id, None, 0.0, now_us)
        assert reply is not None
        return reply.refused

    assert refusal(copies(model_key, forged)) in {reason.value for reason in Refusal}
    assert refusal(copies(model_key, *[envelope] * (MAX_RECORDS + 1))) == Refusal.MALFORMED
    assert refusal(copies(model_key)) == Refusal.MALFORMED
    assert refusal(copies(b"no provider key", envelope)) == Refusal.MALFORMED
    assert len(server.cache) == 0


def test_copies_under_a_key_with_something_of_a_revoked_signer_are_dropped_and_none_of_it_is_taken_again(
    server: KadServer, alice: Person, carol: Person, model_key: bytes, task_key: bytes, now_us: int
) -> None:
    stolen, other = alice.card(), carol.card()

    def read() -> tuple[bytes, ...] | None:
        reply = server.handle(Message(Kind.GET_PROVIDERS, task_key), carol.id, None, 1.0, now_us)
        assert reply is not None
        return reply.records

    server.handle(copies(task_key, stolen.envelope, other.envelope), carol.id, None, 0.0, now_us)
    server.handle(copies(model_key, carol.offer().envelope), carol.id, None, 0.0, now_us)
    assert read() == (stolen.envelope, other.envelope)
    server.revoke(seal_revocation(Revocation(alice.id, now_us, "stolen", None), alice.key), None)
    assert not read()
    assert len(server.cache) == 1  # what nobody revoked stays
    server.handle(copies(task_key, stolen.envelope, other.envelope), carol.id, None, 2.0, now_us)
    assert read() == (other.envelope,)
