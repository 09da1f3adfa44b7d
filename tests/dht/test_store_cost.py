"""What a store costs, and whom it reaches: among 64 who know nearly all of each other, and from afar."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.simulator import Node, Simulator, Weather
from modelnet_p2p.dht.table.survey import Survey
from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.dht.walks.storing import Store
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import MAX_RECORDS_ADDED, Contact, Message
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.tuning import LAN, TEST

if TYPE_CHECKING:
    from tests.dht.conftest import Person

SEED = 20_26


def settled(rng: Random, people: Sequence[Person]) -> tuple[Simulator, list[Node]]:
    """They join one after the other, and each has looked once through what it knows."""
    world = Simulator(rng, tuning=LAN, weather=Weather(fastest=0.0001, slowest=0.0005))
    nodes: list[Node] = []
    for person in people:
        node = world.add(person.id)
        world.join(node, rng.sample(nodes, min(2, len(nodes))))
        world.run(world.now + 1.0)
        nodes.append(node)
    for node in nodes:
        for look in Survey(node.table).looks(lambda: world.now, LAN.table_refresh, lambda: rng.randbytes(32)):
            world.start(node, world.looking_walk(node, look))
            world.run()
    return world, nodes


def test_a_store_among_64_lies_with_the_20_nearest_and_costs_little_more_than_a_message_to_each(
    person: Callable[[str], Person],
) -> None:
    rng, people = Random(SEED), [person(f"peer {number}") for number in range(64)]
    world, nodes = settled(rng, people)
    messages = list[int]()
    for number, (publisher, node) in enumerate(zip(people, nodes, strict=True)):
        key, offer = provider_key(Keys("public").model(f"m/{number}")), publisher.offer(f"m/{number}")
        walk = Store(
            key,
            [offer],
            node.contact,
            world.seeds(node, key),
            tuning=LAN,
            patience=node.patience.seconds,
            region=node.region,
            ours=lambda _: True,
        )
        world.start(node, walk)
        world.run()
        assert (walk.report.asked, walk.report.stored) == (LAN.k, LAN.k)
        nearest = [peer for peer in world.closest_alive(key, LAN.k + 1) if peer != node.id][: LAN.k]
        assert [p.short for p in nearest if not world.nodes[p].store.page(key, b"", 65536).sealeds] == []
        messages.append(walk.messages)
    mean = statistics.mean(messages)
    print(f"\nseed {SEED}: {mean:.2f} messages of a store, at most {max(messages)}")
    assert mean <= LAN.k + 2
    assert statistics.median(messages) == LAN.k


def test_who_was_sent_some_of_the_records_as_if_it_were_a_holder_gets_all_of_them(
    alice: Person, task_key: bytes
) -> None:
    cards = [alice.card(f"alice/model{number}") for number in range(MAX_RECORDS_ADDED + 1)]
    town = [Contact(PeerId(b"peer%d" % number), (b"addr",)) for number in range(3 * TEST.k)]
    town.sort(key=lambda peer: position(peer.id) ^ position(task_key))
    farther = town[TEST.k + 2]
    region = Region((position(farther.id) ^ position(task_key)) + 1, TEST.k)
    walk = Store(task_key, cards, alice.contact, [farther], tuning=TEST, region=region, ours=lambda _: True)
    told: dict[PeerId, list[int]] = {}
    while isinstance(send := walk.poll(0.0), Send):
        told.setdefault(send.contact.id, []).append(len(send.message.records or ()))
        reply = Message(send.message.kind, closer=tuple(town[: TEST.k]), records=())
        walk.on_reply(send.contact.id, reply, 0.0)
    assert told == {peer.id: [MAX_RECORDS_ADDED, 1] for peer in (*town[: TEST.k], farther)}
    assert (walk.report.asked, walk.report.stored) == (TEST.k, TEST.k)
