"""Finding peers, collecting records, storing them: against real servers, and against liars by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import OfferStore
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.simulator import Node, Simulator
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.walks.collecting import MAX_BUSY, Collect
from modelnet_p2p.dht.walks.finding import (
    FindClosest,
    FindPeer,
    Send,
    Sounding,
)
from modelnet_p2p.dht.walks.lookup import Done, Wait
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.dht.walks.storing import Store, Stored
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import MAX_RECORDS_ADDED, Contact, Kind, Message
from modelnet_p2p.records import Refusal, Sealed
from modelnet_p2p.tuning import LAN, TEST

if TYPE_CHECKING:
    from tests.dht.conftest import Person

PEERS = [Contact(PeerId(b"peer%d" % i), (b"addr",)) for i in range(5)]


def collect(key: bytes, me: PeerId, now_us: int, limit: int | None = None) -> Collect:
    return Collect(key, PEERS[:3], me=me, network="public", tuning=TEST, now=0.0, now_us=now_us, limit=limit)


def sends(walk: Collect | Store, now: float = 0.0) -> list[Send]:
    """All that it sends before it waits or ends."""
    found = []
    while isinstance(step := walk.poll(now), Send):
        found.append(step)
    return found


def page(*sealeds: Sealed, closer: tuple[Contact, ...] = (), cursor: bytes = b"") -> Message:
    return Message(
        Kind.GET_PROVIDERS, closer=closer, records=tuple(s.envelope for s in sealeds), cursor=cursor
    )


def acknowledge(walk: Store, send: Send, refused: str = "") -> None:
    walk.on_reply(send.contact.id, Message(Kind.ADD_PROVIDER, records=(), refused=refused), 0.0)


def walked(walk: Store, ours: int) -> list[Send]:
    """Every peer answers the walk, the first `ours` of PEERS with our extension; what is sent then."""
    for send in sends(walk):
        assert send.message.kind is Kind.FIND_NODE
        is_ours = send.contact in PEERS[:ours]
        reply = Message(Kind.FIND_NODE, closer=tuple(PEERS), records=() if is_ours else None)
        walk.on_reply(send.contact.id, reply, 0.0)
    return sends(walk)


def test_carol_reads_three_holders_and_merges_the_newest_whoever_lies(
    alice: Person, bob: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    old, new, gone = alice.offer(seq=1), alice.offer(seq=2), bob.tombstone(seq=5)
    forged = replace(old, envelope=old.envelope[:-1] + bytes([old.envelope[-1] ^ 1]))
    foreign = carol.offer("carol/other")
    walk = collect(model_key, carol.id, now_us)
    first = sends(walk)
    assert [send.message for send in first] == [Message(Kind.GET_PROVIDERS, model_key)] * 3
    replies = [page(old, bob.offer(seq=5)), page(forged, foreign, new, gone), page(old)]
    for send, reply in zip(first, replies, strict=True):
        walk.on_reply(send.contact.id, reply, 0.0)
    assert walk.poll(0.0) == Done()
    assert walk.records == (new,)
    assert walk.refused == {Refusal.FORGED: 1, Refusal.FOREIGN_KEY: 1}
    assert walk.ours == {peer.id for peer in PEERS[:3]}


def test_pages_are_followed_until_the_limit_and_not_beyond(
    person: Callable[[str], Person], carol: Person, task_key: bytes, now_us: int
) -> None:
    cards = [person(name).card() for name in ("ann", "ben", "cat", "dan")]
    for limit, expected in ((None, 4), (3, 3), (1, 1)):
        walk = collect(task_key, carol.id, now_us, limit)
        for send in sends(walk):
            more = send.contact == PEERS[0]
            walk.on_reply(send.contact.id, page(cards[0], cursor=b"c1") if more else page(cards[0]), 0.0)
        cursor = 1
        while asked := sends(walk):
            assert [(s.contact, s.message.cursor) for s in asked] == [(PEERS[0], b"c%d" % cursor)]
            cursor += 1
            following = b"c%d" % cursor if cursor < 4 else b""
            walk.on_reply(PEERS[0].id, page(cards[cursor - 1], cursor=following), 0.0)
        assert walk.poll(0.0) == Done()
        assert len(walk.records) == expected


def test_a_holder_that_keeps_a_page_back_is_left_behind(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    walk = collect(model_key, carol.id, now_us)
    for send in sends(walk):
        walk.on_reply(send.contact.id, page(alice.offer(), cursor=b"more"), 0.0)
    assert len(sends(walk)) == 3
    walk.on_failure(PEERS[0].id, 0.1)
    walk.on_reply(PEERS[1].id, page(), 0.1)
    assert walk.poll(0.1) == Wait(TEST.patience)
    assert walk.poll(TEST.patience) == Done()
    assert len(walk.records) == 1


def test_a_page_that_waits_for_its_turn_is_waited_for_and_asked_for_again(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    walk = collect(model_key, carol.id, now_us)
    for send in sends(walk):
        more = b"more" if send.contact == PEERS[0] else b""
        walk.on_reply(send.contact.id, page(cursor=more), 0.0)
    assert [send.message.cursor for send in sends(walk)] == [b"more"]
    walk.on_held(PEERS[0].id)
    assert walk.poll(100.0) == Wait(math.inf)
    walk.on_busy(PEERS[0].id, 100.0)
    [again] = sends(walk, 100.0)
    assert (again.contact, again.message.cursor) == (PEERS[0], b"more")
    walk.on_reply(PEERS[0].id, page(alice.offer()), 100.1)
    assert walk.poll(100.1) == Done()
    assert len(walk.records) == 1


def test_a_holder_that_is_busy_for_ever_does_not_keep_a_reader_for_ever(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    walk = collect(model_key, carol.id, now_us)
    for send in sends(walk):
        cursor = b"more" if send.contact == PEERS[0] else b""
        walk.on_reply(send.contact.id, page(alice.offer(), cursor=cursor), 0.0)
    asked = 0
    while isinstance(step := walk.poll(0.0), Send):
        asked += 1
        walk.on_busy(step.contact.id, 0.0)
    assert step == Done()
    assert asked == MAX_BUSY + 1
    assert len(walk.records) == 1


def test_a_busy_holder_of_a_key_that_is_stored_has_not_acknowledged_it(
    alice: Person, model_key: bytes
) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS, tuning=TEST)
    for send in walked(walk, ours=2):
        if send.expects_reply:
            walk.on_held(send.contact.id)
            walk.on_busy(send.contact.id, 0.0)
    assert walk.poll(0.0) == Done()
    assert (walk.report.asked, walk.report.stored, walk.report.promised) == (2, 0, False)


def test_my_own_store_is_one_holder_among_the_others(
    alice: Person, bob: Person, model_key: bytes, now_us: int
) -> None:
    walk = collect(model_key, bob.id, now_us)
    walk.on_local([alice.offer(seq=2)], [alice.contact])
    for send in sends(walk):
        walk.on_reply(send.contact.id, page(alice.offer(seq=1)), 0.0)
    assert [sealed.seq for sealed in walk.records] == [2]
    assert walk.contact(alice.id) == alice.contact
    assert walk.contact(PeerId(b"unheard of")).addrs == ()


def test_a_stock_peer_names_providers_without_records(carol: Person, model_key: bytes, now_us: int) -> None:
    walk = collect(model_key, carol.id, now_us)
    for send in sends(walk):
        walk.on_reply(send.contact.id, Message(Kind.GET_PROVIDERS, providers=(PEERS[4],)), 0.0)
    assert walk.poll(0.0) == Done()
    assert walk.providers == {PEERS[4].id: PEERS[4]}
    assert walk.ours == set()


def test_a_publish_is_promised_by_a_majority_of_ours_and_stock_peers_are_told_beside_them(
    alice: Person, task_key: bytes
) -> None:
    cards = [alice.card("alice/a"), alice.card("alice/b")]
    walk = Store(task_key, cards, alice.contact, PEERS, tuning=TEST)
    stock, *ours = sorted(walked(walk, ours=4), key=lambda send: send.expects_reply)
    assert (stock.contact, stock.message.records, stock.message.providers) == (
        PEERS[4],
        None,
        (alice.contact,),
    )
    assert {send.contact.id for send in ours} == {peer.id for peer in PEERS[:4]}
    assert {send.message.records for send in ours} == {tuple(card.envelope for card in cards)}
    acknowledge(walk, ours[0])
    acknowledge(walk, ours[1])
    acknowledge(walk, ours[2], refused="full_provider")
    assert not walk.report.promised  # two of four are no majority
    assert walk.poll(0.0) == Wait(float("inf"))
    acknowledge(walk, ours[3])
    assert walk.poll(0.0) == Done()
    report = walk.report
    assert (report.asked, report.stored, report.promised, report.refused) == (
        4,
        3,
        True,
        {"full_provider": 1},
    )


def test_many_records_go_in_messages_that_each_have_room(alice: Person, task_key: bytes) -> None:
    cards = [alice.card(f"alice/model{number}") for number in range(MAX_RECORDS_ADDED + 1)]
    walk = Store(task_key, cards, alice.contact, PEERS, tuning=TEST)
    [first] = [send for send in walked(walk, ours=1) if send.message.records]
    assert first.message.records == tuple(card.envelope for card in cards[:-1])
    acknowledge(walk, first)
    [second] = sends(walk)
    assert second.message.records == (cards[-1].envelope,)
    assert not walk.report.promised
    acknowledge(walk, second)
    assert (walk.report.stored, walk.report.promised) == (1, True)


def test_a_late_holder_is_not_left_with_a_part_of_the_records(alice: Person, task_key: bytes) -> None:
    cards = [alice.card(f"alice/model{number}") for number in range(MAX_RECORDS_ADDED + 1)]
    walk = Store(task_key, cards, alice.contact, PEERS[:3], tuning=TEST, ours=lambda peer: True)
    first = sends(walk)
    assert [len(send.message.records or ()) for send in first] == 3 * [MAX_RECORDS_ADDED]
    for send in first[:2]:
        acknowledge(walk, send)
    late = first[2]
    now = 0.0
    while not (seconds := sends(walk, now)):  # the walk gives up on the third one
        now += TEST.patience
    for send in seconds:
        assert send.message.records == (cards[-1].envelope,)
        acknowledge(walk, send)
    assert walk.report.promised
    assert walk.poll(now) == Done()
    assert walk.unfinished
    acknowledge(walk, late)
    [rest] = sends(walk, now)
    assert (rest.contact, rest.message.records) == (late.contact, (cards[-1].envelope,))
    acknowledge(walk, rest)
    assert walk.poll(now) == Done()
    assert not walk.unfinished


def test_who_is_known_to_be_of_ours_is_asked_and_told_in_one_message(alice: Person, model_key: bytes) -> None:
    offer, far = alice.offer(), Contact(PeerId(b"far"), (b"addr",))
    ours = {peer.id for peer in PEERS[:3]}
    walk = Store(model_key, [offer], alice.contact, PEERS[:2], tuning=TEST, ours=ours.__contains__)
    first = sends(walk)
    assert {send.message.kind for send in first} == {Kind.ADD_PROVIDER}
    for send in first:  # their answers name the others, of whom one is unknown and answers as a stock peer
        reply = Message(Kind.ADD_PROVIDER, model_key, closer=(*PEERS[:3], far), records=())
        walk.on_reply(send.contact.id, reply, 0.0)
    asked = {send.contact.id: send.message.kind for send in sends(walk)}
    assert asked == {PEERS[2].id: Kind.ADD_PROVIDER, far.id: Kind.FIND_NODE}
    walk.on_reply(PEERS[2].id, Message(Kind.ADD_PROVIDER, model_key, records=(), refused="full"), 0.0)
    walk.on_reply(far.id, Message(Kind.FIND_NODE, model_key), 0.0)
    [stock] = sends(walk)
    assert (stock.contact, stock.expects_reply) == (far, False)
    assert walk.poll(0.0) == Done()
    report = walk.report
    assert (report.asked, report.stored, report.promised, report.refused) == (3, 2, True, {"full": 1})
    assert walk.messages == 5


def test_once_somebody_of_the_region_has_answered_the_nearest_outside_of_it_are_sent_the_records_at_once(
    alice: Person, model_key: bytes
) -> None:
    town = [Contact(PeerId(b"peer%d" % number), (b"addr",)) for number in range(3 * TEST.k)]
    town.sort(key=lambda peer: position(peer.id) ^ position(model_key))
    nearest, farther = town[: TEST.k], town[TEST.k :]
    region = Region(position(nearest[1].id) ^ position(model_key), TEST.k)  # there is one in it

    def store(seeds: list[Contact]) -> list[Send]:
        walk = Store(
            model_key,
            [alice.offer()],
            alice.contact,
            seeds,
            tuning=TEST,
            region=region,
            ours=lambda _: True,
        )
        sent = list[Send]()
        while batch := sends(walk):
            sent += batch
            for send in batch:
                reply = Message(send.message.kind, closer=tuple(town[:30]), records=())
                walk.on_reply(send.contact.id, reply, 0.0)
        assert (walk.report.asked, walk.report.stored) == (TEST.k, TEST.k)
        return sent

    assert Counter(send.message.kind for send in store(nearest[:1])) == {Kind.ADD_PROVIDER: TEST.k}
    afar = farther[:3]  # who knows where that is
    assert [send.message.kind for send in store(afar)[:3]] == [Kind.FIND_NODE] * 3


def test_one_that_failed_and_is_found_elsewhere_is_sent_the_records_again(
    alice: Person, model_key: bytes
) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS[:2], tuning=TEST, ours=lambda _: True)
    lost, other = sends(walk)
    walk.on_failure(lost.contact.id, 0.0)
    moved = Contact(lost.contact.id, (b"another address",))
    walk.on_reply(other.contact.id, Message(Kind.ADD_PROVIDER, closer=(moved,), records=()), 0.0)
    [again] = sends(walk)
    assert (again.contact.id, again.message.kind) == (lost.contact.id, Kind.ADD_PROVIDER)
    walk.on_reply(lost.contact.id, Message(Kind.ADD_PROVIDER, records=()), 0.0)
    assert walk.poll(0.0) == Done()
    assert (walk.report.asked, walk.report.stored) == (2, 2)


def test_once_promised_the_silent_have_their_patience_and_no_more(alice: Person, model_key: bytes) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS, tuning=TEST)
    for send in walked(walk, ours=5)[:3]:
        acknowledge(walk, send)
    assert walk.poll(0.0) == Wait(TEST.patience)
    assert walk.poll(TEST.patience) == Done()
    assert (walk.report.stored, walk.report.promised) == (3, True)


def crowd(count: int, key: bytes) -> list[Contact]:
    """Peers, the nearest to the key first."""
    peers = [Contact(PeerId(b"of a crowd%d" % number), (b"addr",)) for number in range(count)]
    return sorted(peers, key=lambda one: position(one.id) ^ position(key))


def test_a_promise_is_kept_before_the_last_holder_has_answered_but_not_before_each_was_asked(
    alice: Person, model_key: bytes
) -> None:
    """Twenty are known, and then one who is nearer than all of them: he is one of those who count."""
    nearest, *peers = crowd(TEST.k + 1, model_key)
    walk = Store(model_key, [alice.offer()], alice.contact, peers, tuning=TEST, ours=lambda _: True)
    asked = sends(walk)
    assert len(asked) == TEST.alpha < TEST.k
    for number in range(TEST.k // 2 + 1):
        named = (nearest,) if number == TEST.k // 2 else ()
        walk.on_reply(asked[number].contact.id, Message(Kind.ADD_PROVIDER, closer=named, records=()), 0.0)
        assert not walk.report.promised, "somebody is still to be asked" if named else "no majority"
        while isinstance(step := walk.poll(0.0), Send):
            asked.append(step)
    assert asked[-1].contact == nearest
    assert step == Done()
    assert (walk.report.asked, walk.report.stored) == (TEST.k, TEST.k // 2 + 1)
    for send in asked[TEST.k // 2 + 1 :]:
        assert walk.unfinished
        walk.on_reply(send.contact.id, Message(Kind.ADD_PROVIDER, records=()), 0.0)
        step = walk.poll(0.0)
    assert step == Done()
    assert not walk.unfinished
    assert (walk.report.asked, walk.report.stored) == (TEST.k, TEST.k)


def answered_by(walk: Store, stock: set[PeerId]) -> list[Send]:
    """One after the other answers, until whoever waits for it is let go; who has not answered then."""
    asked: list[Send] = []
    while not isinstance(step := walk.poll(0.0), Done):
        if isinstance(step, Send):
            asked.append(step)
            continue
        send = asked.pop(0)
        records = None if send.contact.id in stock else ()
        walk.on_reply(send.contact.id, Message(send.message.kind, records=records), 0.0)
    return asked


def test_stock_peers_make_no_promise(alice: Person, model_key: bytes) -> None:
    peers = crowd(TEST.k, model_key)
    stock = {one.id for one in peers[::3]}
    walk = Store(
        model_key, [alice.offer()], alice.contact, peers, tuning=TEST, ours=lambda peer: peer not in stock
    )
    answered_by(walk, stock)
    assert walk.report.asked == walk.report.stored == TEST.k - len(stock)


def test_a_refusal_after_the_promise_breaks_it_no_more(alice: Person, model_key: bytes) -> None:
    peers = crowd(TEST.k, model_key)
    walk = Store(model_key, [alice.offer()], alice.contact, peers, tuning=TEST, ours=lambda _: True)
    left = answered_by(walk, set())
    assert len(left) == TEST.k - TEST.k // 2 - 1
    nearer = crowd(400, model_key)[: TEST.k]
    while left:
        reply = Message(left[0].message.kind, closer=tuple(nearer), records=(), refused="full")
        walk.on_reply(left.pop(0).contact.id, reply, 0.0)
        left += sends(walk)
    assert not walk.unfinished
    assert (walk.report.asked, walk.report.stored, walk.report.promised) == (TEST.k, 0, True)


def test_in_a_crowd_the_promise_waits_for_all(alice: Person, model_key: bytes) -> None:
    """Four times as many lie there as should: which of them count is known at the end."""
    walk = Store(
        model_key,
        [alice.offer()],
        alice.contact,
        crowd(400, model_key),
        tuning=TEST,
        region=Region.expecting(TEST.k, 100),
        ours=lambda _: True,
    )
    asked: list[Send] = []
    while not isinstance(step := walk.poll(0.0), Done):
        if isinstance(step, Send):
            asked.append(step)
        else:
            send = asked.pop(0)
            walk.on_reply(send.contact.id, Message(send.message.kind, records=()), 0.0)
    assert not asked
    assert walk.lookup.crowded
    assert walk.report.stored > TEST.k // 2


def test_what_takes_something_back_waits_for_all(alice: Person, model_key: bytes) -> None:
    """Who has not heard of it would go on offering what was withdrawn."""
    peers = crowd(TEST.k, model_key)
    walk = Store(model_key, [alice.tombstone()], alice.contact, peers, tuning=TEST, ours=lambda _: True)
    asked: list[Send] = []
    while not isinstance(step := walk.poll(0.0), Done):
        if isinstance(step, Send):
            asked.append(step)
        else:
            walk.on_reply(asked.pop(0).contact.id, Message(Kind.ADD_PROVIDER, records=()), 0.0)
    assert not asked
    assert (walk.report.asked, walk.report.stored) == (TEST.k, TEST.k)


def test_the_nearest_that_stood_still_have_the_records_once_they_move_again(
    alice: Person, model_key: bytes
) -> None:
    """All nearest to the key answer nothing for a while: farther ones keep the promise meanwhile, and who
    publishes is not kept waiting. Then the nearest answer, late, what they were asked, and are told."""
    world = Simulator(Random(31), tuning=LAN)
    nodes = [world.add() for _ in range(199)] + [publisher := world.add(alice.id)]
    for node in nodes[1:]:
        world.join(node, nodes[:1])
        world.run()
    nearest = [peer for peer in world.closest_alive(model_key, LAN.k) if peer != alice.id]
    for peer in nearest:
        world.nodes[peer].thaws = world.now + 4.0
    region = Region.expecting(LAN.k, len(nodes))
    walk = Store(
        model_key,
        [alice.offer()],
        publisher.contact,
        world.seeds(publisher, model_key),
        tuning=LAN,
        region=region,
    )
    reports: list[Stored] = []
    run = world.start(publisher, walk, then=lambda _: reports.append(walk.report))
    world.run()
    assert run.seconds < 4.0
    [report] = reports
    assert report.promised
    assert report.silent >= LAN.k
    assert [peer.short for peer in nearest if not holds(world.nodes[peer], model_key)] == []


def holds(node: Node, key: bytes) -> bool:
    return bool(node.store.page(key, b"", 65536).sealeds)


def test_a_late_answer_that_names_nobody_new_asks_nobody(alice: Person, model_key: bytes) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS[:4], tuning=TEST, ours=lambda _: True)
    *prompt, late = sends(walk)
    for send in prompt:
        acknowledge(walk, send)
    now = 0.0
    while walk.poll(now) != Done():
        now += TEST.patience / 2
    assert walk.unfinished
    acknowledge(walk, late)
    assert walk.poll(now) == Done()
    assert not walk.unfinished
    assert (walk.report.asked, walk.report.stored) == (4, 4)


def test_a_failed_majority_is_no_promise(alice: Person, model_key: bytes) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS, tuning=TEST)
    for send in walked(walk, ours=2):
        if send.expects_reply:
            walk.on_failure(send.contact.id, 0.0)
    assert walk.poll(0.0) == Done()
    assert (walk.report.asked, walk.report.stored, walk.report.promised) == (2, 0, False)


def test_who_is_silent_may_be_there_and_who_refuses_a_dial_is_not(alice: Person, model_key: bytes) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS[:2], tuning=TEST)
    gone, silent = sends(walk)
    walk.on_failure(gone.contact.id, 0.0)
    for now in (TEST.patience / 2, TEST.patience):
        assert isinstance(walk.poll(now), Wait)
    walk.on_failure(silent.contact.id, 2.0)
    assert walk.poll(2.0) == Done()
    assert (walk.report.asked, walk.report.silent, walk.report.promised) == (0, 1, False)


def test_alone_in_the_world_a_publish_succeeds_on_nobody(alice: Person, model_key: bytes) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, [], tuning=TEST)
    assert walk.poll(0.0) == Done()
    assert (walk.report.stored, walk.report.promised, walk.report.alone) == (0, True, True)


@pytest.fixture
def street() -> tuple[Simulator, list[Node]]:
    """Twelve peers that joined through the first."""
    world = Simulator(Random(3), tuning=TEST)
    nodes = [world.add() for _ in range(12)]
    for node in nodes[1:]:
        world.join(node, nodes[:1])
        world.run()
    return world, nodes


def test_bob_finds_a_peer_that_he_never_met(street: tuple[Simulator, list[Node]], bob: Person) -> None:
    world, nodes = street
    for peer, known in ((nodes[7].id, True), (PeerId(b"nobody"), False)):
        walk = FindPeer(peer, [nodes[0].contact], me=bob.id, tuning=TEST)
        stranger = Node(
            bob.contact,
            table := RoutingTable(bob.id, TEST.k),
            store := OfferStore(),
            KadServer(bob.id, "public", table, store),
            nodes[0].patience,
        )
        assert world.start(stranger, walk).ended is None
        world.run()
        assert walk.found == (nodes[7].contact if known else None)


def test_what_alice_stores_carol_finds_and_what_she_withdraws_is_gone(
    street: tuple[Simulator, list[Node]], alice: Person, carol: Person, model_key: bytes
) -> None:
    world, nodes = street
    home, reader = world.add(alice.id), world.add(carol.id)
    world.join(home, nodes[:1])
    world.join(reader, nodes[1:2])
    world.run()
    for sealed, found in ((alice.offer(seq=1), 1), (alice.tombstone(seq=2), 0), (alice.offer(seq=1), 0)):
        seeds = home.table.closest(model_key, TEST.k)
        store = Store(model_key, [sealed], home.contact, seeds, tuning=TEST)
        world.start(home, store)
        world.run()
        stale = not found and not sealed.is_tombstone
        assert store.report.promised is not stale
        assert store.report.refused == ({"stale": store.report.asked} if stale else {})
        read = Collect(
            model_key,
            reader.table.closest(model_key, TEST.k),
            me=reader.id,
            network="public",
            tuning=TEST,
            now=world.now,
            now_us=world.now_us,
        )
        world.start(reader, read)
        world.run()
        assert len(read.records) == found
        assert not found or read.contact(alice.id) == home.contact


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_walk_ends_whatever_its_peers_answer(
    seed: int, alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    rng = Random(seed)
    junk = [alice.offer(), alice.offer(seq=2), alice.tombstone(seq=3), alice.card()]
    walks: list[Collect | Store] = [
        collect(model_key, carol.id, now_us, rng.choice([None, 1])),
        Store(model_key, junk[:2], carol.contact, PEERS[:3], tuning=TEST),
    ]
    for walk in walks:
        now, waiting = 0.0, list[PeerId]()
        for _ in range(5000):
            match walk.poll(now):
                case Send(contact, _, True):
                    waiting.append(contact.id)
                case Wait(until) if not waiting:
                    assert until < float("inf")
                    now = until
                case Wait():
                    peer = waiting.pop(rng.randrange(len(waiting)))
                    message = Message(
                        rng.choice([Kind.FIND_NODE, Kind.GET_PROVIDERS, Kind.ADD_PROVIDER]),
                        closer=tuple(rng.sample(PEERS, 3)),
                        providers=tuple(rng.sample(PEERS, 2)),
                        records=rng.choice([None, (), (rng.randbytes(40), rng.choice(junk).envelope)]),
                        cursor=rng.choice([b"", b"", b"again"]),
                        refused=rng.choice(["", "", "x" * 64]),
                    )
                    if rng.random() < 0.7:
                        walk.on_reply(peer, message, now)
                    else:
                        walk.on_failure(peer, now)
                    now += rng.choice([0.0, 0.1])
                case Done():
                    break
        else:
            pytest.fail(f"did not end, seed {seed}")


def test_a_reader_goes_past_newcomers_that_hold_nothing_yet(
    alice: Person, carol: Person, model_key: bytes, now_us: int
) -> None:
    """The beta closest joined after the publish: they answer, but know no record, or a bad one."""
    nearest = sorted(PEERS, key=lambda peer: position(peer.id) ^ position(model_key))
    walk = Collect(model_key, PEERS, me=carol.id, network="public", tuning=TEST, now=0.0, now_us=now_us)
    forged = alice.offer().envelope[:-1] + b"\x00"
    asked = []
    while batch := sends(walk):
        for send in batch:
            asked.append(send.contact)
            holds = nearest.index(send.contact) >= 3
            envelope = alice.offer().envelope if holds else forged
            walk.on_reply(send.contact.id, Message(Kind.GET_PROVIDERS, records=(envelope,)), 0.0)
    assert asked[:3] == nearest[:3]
    assert len(asked) == 5
    assert [sealed.record.provider for sealed in walk.records] == [alice.id]


def test_a_store_among_silent_neighbours_is_no_success(alice: Person, model_key: bytes) -> None:
    def store(seeds: list[Contact]) -> Store:
        return Store(model_key, [alice.offer()], alice.contact, seeds, tuning=TEST)

    silent = store(PEERS[:3])
    for send in sends(silent):
        silent.on_failure(send.contact.id, 0.0)
    assert silent.poll(0.0) == Done()
    assert not silent.report.promised
    assert not silent.report.alone
    nobody = store([])
    assert nobody.poll(0.0) == Done()
    assert nobody.report.promised
    assert nobody.report.alone


def test_a_sounding_tells_who_lives_around_a_key_and_asks_a_fifth_of_them() -> None:
    rng, world = Random(20), Simulator(Random(21))
    nodes = [world.add() for _ in range(300)]
    for node in nodes[1:]:
        world.join(node, [nodes[0]])
        world.run()
    asked, common, kinds = Counter[str](), 0, (FindClosest, Sounding)
    for _ in range(20):
        node, key = rng.choice(nodes), rng.randbytes(34)
        found = []
        for kind in kinds:
            walk = kind(key, world.seeds(node, key), me=node.id, tuning=world.tuning)
            world.start(node, walk)
            world.run()
            asked[kind.__name__] += walk.messages
            found.append(set(walk.closest))
        common += len(found[0] & found[1])
    assert common >= 0.95 * 20 * world.tuning.k
    assert 4 * asked["Sounding"] <= asked["FindClosest"]


def test_one_liar_adds_nobody_to_a_sounding_and_takes_nobody_away() -> None:
    key, strangers = b"key", tuple(Contact(PeerId(b"nobody%d" % i), (b"addr",)) for i in range(20))
    walk = Sounding(key, PEERS[:3], me=PeerId(b"me"), tuning=TEST)
    while isinstance(send := walk.poll(0.0), Send):
        lies = send.contact == PEERS[0]
        named = strangers if lies else (*PEERS, Contact(PeerId(b"me"), (b"addr",)))
        answers = send.contact in PEERS
        if answers:
            walk.on_reply(send.contact.id, Message(Kind.FIND_NODE, closer=named), 0.0)
        else:
            walk.on_failure(send.contact.id, 0.0)
    assert set(walk.closest) == {peer.id for peer in PEERS}


def test_two_liars_of_one_network_are_one_teller_and_two_of_two_are_two() -> None:
    key, strangers = b"key", tuple(Contact(PeerId(b"nobody%d" % i), (b"addr",)) for i in range(20))
    liars = {PEERS[0].id, PEERS[1].id}
    networks = dict.fromkeys(liars, "8.8.8.0/24"), {PEERS[0].id: "8.8.8.0/24", PEERS[1].id: "8.8.4.0/24"}
    for groups, believed in zip(networks, (0, TEST.k - 3), strict=True):
        walk = Sounding(key, PEERS[:3], me=PeerId(b"me"), tuning=TEST, group_of=groups.get)
        while isinstance(send := walk.poll(0.0), Send):
            if send.contact in PEERS:
                named = strangers if send.contact.id in liars else ()
                walk.on_reply(send.contact.id, Message(Kind.FIND_NODE, closer=named), 0.0)
            else:
                walk.on_failure(send.contact.id, 0.0)
        assert len(set(walk.closest) & {one.id for one in strangers}) >= believed
        assert bool(set(walk.closest) & {one.id for one in strangers}) is bool(believed)
        assert {peer.id for peer in PEERS[:3]} & set(walk.closest)


def test_who_answers_and_whom_only_its_own_network_named_says_no_more_than_that_network() -> None:
    own, gang = Contact(PeerId(b"another of the gang"), (b"addr",)), "8.8.8.0/24"
    groups = {PEERS[0].id: gang, own.id: gang}
    walk = Sounding(b"key", PEERS[:3], me=PeerId(b"me"), tuning=TEST, group_of=groups.get)
    while isinstance(send := walk.poll(0.0), Send):
        named = (own,) if send.contact == PEERS[0] else ()
        walk.on_reply(send.contact.id, Message(Kind.FIND_NODE, closer=named), 0.0)
    assert set(walk.closest) == {peer.id for peer in PEERS[:3]}  # whom I knew before


def test_liars_of_one_network_neither_end_the_search_for_a_peer_nor_crowd_its_addresses_out() -> None:
    lost, liars = PeerId(b"lost"), {peer.id for peer in PEERS[:4]}
    false = tuple(b"false%d" % number for number in range(16))
    for group, found in (("8.8.8.0/24", True), (None, False)):
        groups = dict.fromkeys(liars, group)
        walk = FindPeer(lost, PEERS, me=PeerId(b"me"), tuning=TEST, group_of=groups.get)
        while isinstance(send := walk.poll(0.0), Send):
            if send.contact.id == lost:
                walk.on_failure(lost, 0.0)
            else:
                addrs = false if send.contact.id in liars else (b"true",)
                reply = Message(Kind.FIND_NODE, closer=(Contact(lost, addrs),))
                walk.on_reply(send.contact.id, reply, 0.0)
        assert walk.found is not None
        assert (b"true" in walk.found.addrs[:2]) is found


def test_who_answers_is_heard_of_while_the_dead_are_still_waited_for() -> None:
    town = [Contact(PeerId(b"peer%d" % number), (b"addr",)) for number in range(4 * TEST.k)]
    dead, stock = sorted(town, key=lambda peer: position(peer.id) ^ position(b"key"))[:2]
    heard: list[PeerId] = []
    walk = FindClosest(b"key", town, me=PeerId(b"me"), tuning=TEST, on_ours=heard.append)
    asked: set[PeerId] = set()
    while isinstance(step := walk.poll(0.0), Send):
        asked.add(step.contact.id)
        if step.contact != dead:
            records = None if step.contact == stock else ()
            walk.on_reply(step.contact.id, Message(Kind.FIND_NODE, closer=(), records=records), 0.0)
    assert isinstance(step, Wait)  # for the dead one
    assert sorted(heard) == sorted(asked - {dead.id, stock.id})

    while isinstance(step := walk.poll(math.inf), Send):  # it is waited for no longer: one more is asked
        walk.on_reply(step.contact.id, Message(Kind.FIND_NODE, closer=(), records=()), 0.0)
    assert isinstance(step, Done)
    assert len(walk.closest) == TEST.k
    assert dead.id not in walk.closest
    assert set(walk.closest) - set(walk.closest_ours) == {stock.id}
