"""Three drivers, one story: what is simulated is what trio does, and (tests/live) what sockets do."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random

import trio.testing

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.simulator import Node, Simulator
from modelnet_p2p.dht.walks.collecting import Collect
from modelnet_p2p.dht.walks.storing import Store
from modelnet_p2p.node.overlay.signing import records_of
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.transport.memory import MemoryWorld
from modelnet_p2p.records import Sealed, seal_offer
from modelnet_p2p.tuning import LAN, WAN
from story import ENOUGH, HOLDERS, KEYS, NETWORK, OFFERS, PAGE_BYTES, PEOPLE, READERS, Told, expected, facts
from story_peers import tell


def by_heap(seed: int = 1) -> Told:
    """The story on the simulator's heap of events."""
    sim = Simulator(Random(seed), tuning=WAN, network=NETWORK)
    nodes = [sim.add(person.id) for person in PEOPLE]
    for node in nodes[1:]:
        sim.join(node, [nodes[0]])
        sim.run(sim.now + 5)
    for node in nodes:
        sim.start(node, sim.closest_walk(node, bytes(node.id)))
    sim.run()
    mine: dict[tuple[int, bytes], list[Sealed]] = {}
    for person, draft in OFFERS:
        offer = replace(draft, issued_us=sim.now_us, expires_us=sim.now_us + int(WAN.record_lifetime * 1e6))
        sealed = seal_offer(offer, person)
        number = PEOPLE.index(person)
        for key, record in records_of([sealed], person)[0].items():
            mine.setdefault((number, key), []).append(record)
            _store(sim, nodes[number], key, record)
        sim.run()
    told = Told()
    for reader in READERS:
        walks = [_collect(sim, nodes[reader], key, mine.get((reader, key), [])) for key in KEYS]
        sim.run()
        for key, walk in zip(KEYS, walks, strict=True):
            told.read[reader, key] = facts(walk.records)
    told.look_into({node.id: node.store for node in nodes})
    return told


def _store(sim: Simulator, node: Node, key: bytes, sealed: Sealed) -> None:
    walk = Store(key, (sealed,), node.contact, sim.seeds(node, key), tuning=sim.tuning, region=node.region)

    def stored(_: object) -> None:
        assert walk.report.promised
        assert isinstance(node.server, KadServer)
        node.server.keep_own(key, (sealed,), node.contact)

    sim.start(node, walk, "store", stored)


def _collect(sim: Simulator, node: Node, key: bytes, own: list[Sealed]) -> Collect:
    walk = Collect(
        key,
        sim.seeds(node, key),
        me=node.id,
        network=sim.network,
        tuning=sim.tuning,
        now=sim.now,
        now_us=sim.now_us,
        limit=ENOUGH,
        region=node.region,
    )
    held = node.store.page(key, b"", PAGE_BYTES)
    walk.on_local([*held.sealeds, *own], [*held.contacts, node.contact])
    sim.start(node, walk, "read")
    return walk


def test_the_story_is_one_of_records_that_lie_with_some_and_not_with_all() -> None:
    truth = expected()
    assert len(KEYS) > 20
    assert sum(bool(found) for found in truth.read.values()) == len(READERS) * (len(KEYS) - 1)
    assert {len(holders) for holders in truth.held.values()} == {HOLDERS}
    assert len(set(truth.held.values())) > 20


def test_the_heap_tells_the_truth() -> None:
    assert by_heap() == expected()


async def test_trio_in_virtual_time_tells_the_same(autojump_clock: trio.testing.MockClock) -> None:
    world = MemoryWorld()
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        for person in PEOPLE:
            transport = await stack.enter_async_context(world.open(person, tuning=LAN))
            peer = await stack.enter_async_context(Peer.open_on(transport, person, NETWORK, LAN))
            if peers:
                assert (await peer.bootstrap(peers[0].addrs)).reached
            peers.append(peer)
        await trio.sleep(5)
        assert await tell(peers) == expected()
