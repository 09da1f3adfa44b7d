"""What bob's peer answers: to alice who publishes, to carol who reads, and to those who try things."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.dht.holding.server import KadServer, parse_value_key, value_key
from modelnet_p2p.dht.holding.store import Bounds, OfferStore
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import MAX_MESSAGE_BYTES, MAX_RECORDS_ADDED, Contact, Kind, Message, Value, encode
from modelnet_p2p.records import Refusal, Sealed

if TYPE_CHECKING:
    from tests.dht.conftest import Person

Handle = Callable[..., Message | None]


@pytest.fixture
def server(bob: Person) -> KadServer:
    """Bob's, who knows forty peers."""
    table = RoutingTable(bob.id, 20)
    for number in range(40):
        addrs = tuple(bytes([number]) * 100 for _ in range(16))
        table.add(Contact(PeerId(b"peer%d" % number), addrs), 0.0)
    return KadServer(bob.id, "public", table, OfferStore())


@pytest.fixture
def handle(server: KadServer, alice: Person, now_us: int) -> Handle:
    def call(message: Message, sender: Person = alice, *, later_us: int = 0) -> Message | None:
        return server.handle(message, sender.id, None, 0.0, now_us + later_us)

    return call


def add(key: bytes, provider: Person, *records: bytes) -> Message:
    return Message(Kind.ADD_PROVIDER, key, providers=(provider.contact,), records=records)


def test_every_reply_carries_the_extension_and_nobody_is_told_of_himself(
    server: KadServer, handle: Handle, model_key: bytes, alice: Person
) -> None:
    server.table.add(alice.contact, 0.0)
    for kind in (Kind.FIND_NODE, Kind.GET_PROVIDERS, Kind.GET_VALUE, Kind.PING):
        reply = handle(Message(kind, model_key))
        assert reply is not None
        assert (reply.kind, reply.key, reply.records, reply.refused) == (kind, model_key, (), "")
        assert len(reply.closer) == (0 if kind is Kind.PING else 30)
        assert alice.id not in {contact.id for contact in reply.closer}
        assert len(encode(reply)) <= MAX_MESSAGE_BYTES


def test_alice_publishes_and_carol_reads_it_with_alice_s_addresses(
    server: KadServer, handle: Handle, model_key: bytes, alice: Person, carol: Person
) -> None:
    offer = alice.offer()
    for _ in range(2):  # again: acknowledged, for it is held
        told = handle(add(model_key, alice, offer.envelope))
        assert told is not None
        assert (told.kind, told.records, told.refused) == (Kind.ADD_PROVIDER, (), "")
        assert len(told.closer) == 30  # who stores as it walks is on its way still
    reply = handle(Message(Kind.GET_PROVIDERS, model_key), carol)
    assert reply is not None
    assert (reply.records, reply.providers) == ((offer.envelope,), (alice.contact,))
    assert not server.refused
    gone = handle(Message(Kind.GET_PROVIDERS, model_key), carol, later_us=offer.expires_us)
    assert gone is not None
    assert gone.records == ()


def test_each_bad_record_is_refused_with_its_reason_and_counted(
    server: KadServer, handle: Handle, model_key: bytes, task_key: bytes, alice: Person, carol: Person
) -> None:
    envelope = alice.offer(seq=5).envelope
    flipped = envelope[:-1] + bytes([envelope[-1] ^ 1])
    assert handle(add(model_key, alice, envelope)) is not None
    table: list[tuple[Message, Person, Refusal]] = [
        (add(model_key, alice, flipped), alice, Refusal.FORGED),
        (add(task_key, alice, envelope), alice, Refusal.FOREIGN_KEY),
        (add(model_key, alice, alice.offer(seq=4).envelope), alice, Refusal.STALE),
        (add(model_key, carol, alice.offer(seq=6).envelope), carol, Refusal.WRONG_OWNER),
        (add(model_key, alice, bytes(5000)), alice, Refusal.OVERSIZED),
        (add(model_key, alice), alice, Refusal.MALFORMED),
        (add(model_key, alice, *[envelope] * (MAX_RECORDS_ADDED + 1)), alice, Refusal.MALFORMED),
        (add(b"no multihash", alice, envelope), alice, Refusal.MALFORMED),
        (Message(Kind.GET_PROVIDERS, b"no multihash"), alice, Refusal.MALFORMED),
        (Message(Kind.GET_PROVIDERS, model_key, cursor=b"guess"), alice, Refusal.MALFORMED),
        (Message(Kind.FIND_NODE, b""), alice, Refusal.MALFORMED),
        (Message(Kind.FIND_NODE, bytes(500)), alice, Refusal.MALFORMED),
    ]
    for message, sender, refusal in table:
        before = server.refused[refusal]
        reply = handle(message, sender)
        assert reply is not None
        assert (reply.refused, reply.records) == (refusal.value, ())
        assert server.refused[refusal] == before + 1
    late = add(model_key, alice, alice.offer(seq=7).envelope)
    reply = handle(late, later_us=10**11)
    assert reply is not None
    assert reply.refused == Refusal.EXPIRED


def test_a_stock_peer_s_provider_record_is_not_kept_and_not_answered(
    server: KadServer, handle: Handle, model_key: bytes, alice: Person
) -> None:
    assert handle(Message(Kind.ADD_PROVIDER, model_key, providers=(alice.contact,))) is None
    assert server.refused == {Refusal.UNSIGNED: 1}
    assert len(server.store) == 0


def test_where_there_is_no_room_the_reply_says_so(
    bob: Person, alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    server = KadServer(bob.id, "public", RoutingTable(bob.id, 20), OfferStore(Bounds(per_key=1)))
    for person, refused in ((alice, ""), (carol, "split")):
        message = add(model_key, person, person.offer().envelope)
        reply = server.handle(message, person.id, None, 0.0, now_us)
        assert reply is not None
        assert reply.refused == refused
    assert sum(server.full.values()) == 1


def test_a_big_key_comes_in_pages_that_each_fit(
    handle: Handle, task_key: bytes, person: Callable[[str], Person], carol: Person
) -> None:
    people = [person(f"p{number}") for number in range(150)]
    for one in people:
        assert handle(add(task_key, one, one.card().envelope), one) is not None
    found, cursor, pages = list[bytes](), b"", 0
    while pages == 0 or cursor:
        reply = handle(Message(Kind.GET_PROVIDERS, task_key, cursor=cursor), carol)
        assert reply is not None
        assert reply.records is not None
        assert len(encode(reply)) <= MAX_MESSAGE_BYTES
        assert bool(reply.closer) is (pages == 0)
        found += reply.records
        cursor, pages = reply.cursor, pages + 1
    assert sorted(found) == sorted(one.card().envelope for one in people)
    assert 1 < pages < 5


def test_a_value_has_a_single_writer(
    server: KadServer, handle: Handle, alice: Person, carol: Person, bob: Person
) -> None:
    key, sealed = value_key(alice.id, "acme/sentiment"), alice.offer()
    assert parse_value_key(key) == (alice.id, "acme/sentiment", "")

    def put(at: bytes, value: Sealed, sender: Person) -> str:
        message = Message(Kind.PUT_VALUE, at, value=Value(at, value.envelope))
        reply = handle(message, sender)
        assert reply is not None
        assert (reply.value == message.value) is (reply.refused == "")
        return reply.refused

    assert put(key, sealed, alice) == ""
    assert put(key, sealed, carol) == Refusal.WRONG_OWNER
    assert put(key, carol.offer(), carol) == Refusal.FOREIGN_KEY
    assert put(key, alice.card(), alice) == Refusal.FOREIGN_KEY
    assert put(value_key(alice.id, "alice/other"), sealed, alice) == Refusal.FOREIGN_KEY
    assert put(b"/ipns/x", sealed, alice) == Refusal.FOREIGN_KEY
    assert put(key, alice.offer(seq=2), alice) == ""
    reply = handle(Message(Kind.GET_VALUE, key), bob)
    assert reply is not None
    assert reply.value == Value(key, alice.offer(seq=2).envelope)
    other = handle(reply._replace(kind=Kind.PUT_VALUE, key=b"another"), alice)
    assert other is not None
    assert other.refused == Refusal.MALFORMED


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/modelnet/rec/",
        b"/modelnet/rec/x/y",
        b"/modelnet/rec/\xff/y",
        bytes(300),
        b"/modelnet/rec/" * 30,
    ],
)
def test_what_is_no_value_key(key: bytes) -> None:
    assert parse_value_key(key) is None


def test_bob_keeps_his_own_where_he_is_close(server: KadServer, bob: Person, model_key: bytes) -> None:
    small = KadServer(bob.id, "public", RoutingTable(bob.id, 20), OfferStore())
    assert small.keep_own(model_key, [bob.offer()], bob.contact)
    assert len(small.store) == 1
    assert not small.keep_own(model_key, [bob.offer(seq=0)], bob.contact)
    far = next(key for key in (b"%d" % n for n in range(1000)) if not server.is_close(key))
    assert not server.keep_own(far, [bob.offer()], bob.contact)
    assert len(server.store) == 0


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(Kind),
    key=st.binary(max_size=600) | st.binary(min_size=32, max_size=32).map(lambda raw: b"\x12\x20" + raw),
    records=st.none() | st.lists(st.binary(max_size=5000), max_size=3).map(tuple),
    cursor=st.binary(max_size=40),
    value=st.none() | st.binary(max_size=100),
)
def test_whatever_is_asked_the_answer_is_sound_and_nothing_bad_is_kept(
    kind: Kind,
    key: bytes,
    records: tuple[bytes, ...] | None,
    cursor: bytes,
    value: bytes | None,
    alice: Person,
    bob: Person,
    now_us: int,
) -> None:
    server = KadServer(bob.id, "public", RoutingTable(bob.id, 20), OfferStore())
    carried = None if value is None else Value(key, value)
    message = Message(kind, key, providers=(alice.contact,), records=records, cursor=cursor, value=carried)
    reply = server.handle(message, alice.id, "198.51.100.0/24", 0.0, now_us)
    assert len(server.store) == 0
    if reply is not None:
        assert reply.records == ()
        assert len(encode(reply)) <= MAX_MESSAGE_BYTES
