"""A read that meets copies on its way: what they save, and what liars cannot do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import OfferStore, contact_bytes
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.walks.collecting import HOLDERS, Collect
from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.lookup import Done
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import MAX_MESSAGE_BYTES, Contact, Kind, Message, encode
from modelnet_p2p.records import Sealed, Spec
from modelnet_p2p.tuning import TEST

if TYPE_CHECKING:
    from tests.dht.conftest import Person


def street(key: bytes) -> list[Contact]:
    """Sixty peers, the nearest to the key first."""
    peers = [Contact(PeerId(b"peer%d" % number), (b"addr",)) for number in range(60)]
    return sorted(peers, key=lambda one: position(one.id) ^ position(key))


def reading(key: bytes, me: PeerId, now_us: int, seeds: list[Contact]) -> Collect:
    return Collect(key, seeds, me=me, network="public", tuning=TEST, now=0.0, now_us=now_us, limit=None)


def asked(walk: Collect, now: float = 0.0) -> list[Send]:
    found = []
    while isinstance(step := walk.poll(now), Send):
        found.append(step)
    return found


def page(*sealeds: Sealed, closer: list[Contact] | None = None, cached: bool = False) -> Message:
    records = tuple(sealed.envelope for sealed in sealeds)
    return Message(Kind.GET_PROVIDERS, closer=tuple(closer or ()), records=records, cached=cached)


def test_beside_a_copy_some_true_holders_are_enough_and_they_differ_from_reader_to_reader(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    peers, chosen = street(model_key), set[PeerId]()
    for number in range(20):
        walk = reading(model_key, PeerId(b"reader%d" % number), now_us, [peers[50]])
        [first] = asked(walk)
        walk.on_reply(first.contact.id, page(alice.offer(), closer=peers[:30], cached=True), 0.0)
        holders = asked(walk)
        assert len(holders) == HOLDERS
        assert {send.contact.id for send in holders} <= {peer.id for peer in peers[: TEST.k]}
        for send in holders:
            assert not isinstance(walk.poll(0.0), Done)  # copies alone, and one holder alone, end nothing
            walk.on_reply(send.contact.id, page(alice.offer()), 0.0)
            chosen.add(send.contact.id)
        assert walk.poll(0.0) == Done()
        assert walk.records == (alice.offer(),)
    assert len(chosen) > 8


def test_what_a_holder_knows_to_be_newer_or_withdrawn_wins_over_every_copy(
    alice: Person, bob: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    peers = street(model_key)
    walk = reading(model_key, carol.id, now_us, [peers[50]])
    [first] = asked(walk)
    stale = page(alice.offer(seq=1), bob.offer(seq=1), closer=peers[:30], cached=True)
    walk.on_reply(first.contact.id, stale, 0.0)
    for send in asked(walk):
        walk.on_reply(send.contact.id, page(alice.offer(seq=2), bob.tombstone(seq=2)), 0.0)
    assert walk.poll(0.0) == Done()
    assert walk.records == (alice.offer(seq=2),)


def test_a_gang_of_copyists_ends_no_read_and_an_unmarked_liar_far_away_is_no_holder(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    peers = street(model_key)
    walk = reading(model_key, carol.id, now_us, peers[50:53])
    first = asked(walk)
    walk.on_reply(first[0].contact.id, page(alice.offer(), closer=peers[:30], cached=True), 0.0)
    walk.on_reply(first[1].contact.id, page(alice.offer(), cached=True), 0.0)
    walk.on_reply(first[2].contact.id, page(alice.offer()), 0.0)  # it says that it is a holder
    for send in asked(walk):  # the chosen ones copy as well
        walk.on_reply(send.contact.id, page(alice.offer(), cached=True), 0.0)
    nearest = {send.contact.id for send in asked(walk)}
    assert nearest  # the walk goes on to the nearest, as without copies
    assert nearest <= {peer.id for peer in peers[: TEST.k]}


def test_chosen_holders_that_are_silent_hold_a_read_up_for_half_a_patience(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    peers = street(model_key)
    walk = reading(model_key, carol.id, now_us, [peers[50]])
    [first] = asked(walk)
    walk.on_reply(first.contact.id, page(alice.offer(), closer=peers[:30], cached=True), 0.0)
    assert len(asked(walk)) == HOLDERS
    assert asked(walk, TEST.patience / 2 - 0.01) == []
    assert asked(walk, TEST.patience / 2) != []


def test_a_read_hands_what_holders_told_to_the_nearest_that_had_nothing(
    alice: Person, bob: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    peers = street(model_key)
    walk = reading(model_key, carol.id, now_us, peers[30:33])
    for send in asked(walk):
        walk.on_reply(send.contact.id, page(closer=peers[:30]), 0.0)
    assert walk.handover() is None  # nobody told anything yet
    for send in asked(walk):
        walk.on_reply(send.contact.id, page(alice.offer(), bob.tombstone()), 0.0)
    assert walk.poll(0.0) == Done()
    handed = walk.handover()
    assert handed is not None
    assert handed.contact == peers[30]
    assert handed.message._replace(providers=()) == Message(
        Kind.ADD_PROVIDER, model_key, records=(alice.offer().envelope,), cached=True
    )


def many(person: Person, number: int) -> Sealed:
    """A large offer of acme/sentiment by one of many people."""
    another = type(person)(f"{person.name}{number}")
    specs = tuple(
        Spec(f"in-{at}".ljust(32, "x"), "tensor", "float32", (None, 3, 512, 512)) for at in range(8)
    )
    languages = tuple(f"x-{at:04}" for at in range(32))
    return another.offer(languages=languages, inputs=specs, outputs=specs)


def test_what_is_handed_over_and_told_of_it_fits_a_message_however_large_records_and_addresses_are(
    alice: Person, bob: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    peers = street(model_key)
    offers = [many(alice, number) for number in range(32)]
    told = tuple(Contact(one.identity.provider, (bytes(250),) * 16) for one in offers)
    sizes = sum(len(one.envelope) for one in offers[:16]) + sum(map(contact_bytes, told[:16]))
    assert sizes > MAX_MESSAGE_BYTES
    walk = reading(model_key, carol.id, now_us, peers[30:33])
    for send in asked(walk):
        walk.on_reply(send.contact.id, page(closer=peers[:30]), 0.0)
    for at, send in enumerate(asked(walk)):
        reply = page(*offers[at * 8 : at * 8 + 8])
        walk.on_reply(send.contact.id, reply._replace(providers=told), 0.0)
    handed = walk.handover()
    assert handed is not None
    assert handed.message.records
    encode(handed.message)  # raises where it does not fit
    server = KadServer(bob.id, "public", RoutingTable(bob.id, 20), OfferStore())
    for contact in peers[:40]:
        server.table.add(Contact(contact.id, (bytes(100),) * 8), 0.0)
    for half in (offers[:8], offers[8:16]):  # two messages, of which each fits
        records = tuple(one.envelope for one in half)
        message = Message(Kind.ADD_PROVIDER, model_key, providers=told, records=records, cached=True)
        assert server.handle(message, carol.id, None, 0.0, now_us) is not None
    answer = server.handle(Message(Kind.GET_PROVIDERS, model_key), alice.id, None, 1.0, now_us)
    assert answer is not None
    assert (answer.cached, bool(answer.records)) == (True, True)
    encode(answer)


def test_far_peers_that_call_themselves_holders_do_not_end_a_read_with_copies(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    """At the start all that is known is near; by the end they are not."""
    peers = street(model_key)
    walk = reading(model_key, carol.id, now_us, peers[40:43])
    first = asked(walk)
    walk.on_reply(first[0].contact.id, page(alice.offer(), cached=True), 0.0)
    walk.on_reply(first[1].contact.id, page(alice.offer()), 0.0)
    walk.on_reply(first[2].contact.id, page(alice.offer(), closer=peers[:30]), 0.0)
    assert not isinstance(walk.poll(0.0), Done)


def test_who_met_copies_hands_none_on_so_that_no_copy_outlives_its_holders(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    peers = street(model_key)
    walk = reading(model_key, carol.id, now_us, peers[50:52])
    first = asked(walk)
    walk.on_reply(first[0].contact.id, page(alice.offer(), closer=peers[:30], cached=True), 0.0)
    walk.on_reply(first[1].contact.id, page(), 0.0)
    for send in asked(walk):
        walk.on_reply(send.contact.id, page(alice.offer()), 0.0)
    assert walk.poll(0.0) == Done()
    assert walk.handover() is None
