"""The world that scenarios are played in: its tables are true, its dead are silent, its bytes are counted."""

from __future__ import annotations

import statistics
from random import Random

import pytest

from modelnet_p2p.dht.keyspace import common_prefix, position
from modelnet_p2p.dht.simulator import ENVELOPE_BYTES, Simulator, Weather, wire_bytes
from modelnet_p2p.kad import Kind, Message, encode
from simulation.liars import besiege
from simulation.scenario import World
from simulation.town import Town, address, group_of

FRAMING = ENVELOPE_BYTES - 6  # what is not of the protobuf itself


def town_of(size: int, seed: int = 1, **world: object) -> Town:
    rng = Random(seed)
    town = Town(Simulator(rng), rng, World(peers=(size,), **world))  # type: ignore[arg-type]  # a test's words
    for _ in town.settle(size):
        pass
    return town


def test_a_drawn_table_holds_what_a_walked_one_would() -> None:
    town = town_of(300, publishers=1)
    sim = town.sim
    for node in town.honest[:20]:
        sim.seeds(node, bytes(node.id))  # its table is made
        place = position(node.id)
        for index in range(12):
            there = sum(common_prefix(place, position(other)) == index for other in sim.nodes)
            held = sum(common_prefix(place, position(contact.id)) == index for contact in node.table)
            assert held == min(there, sim.tuning.k)


def test_a_joined_world_knows_its_closest_as_a_drawn_one_does() -> None:
    town = town_of(40, publishers=3, tables="joined")
    for node in town.honest:
        assert len(node.table) >= 20
        assert not node.asleep
    assert all(publication.told for publication in town.publications)


def test_walks_over_drawn_tables_find_the_true_closest() -> None:
    town = town_of(300, publishers=1)
    for number in range(20):
        key = town.rng.randbytes(34)
        reader = town.honest[number]
        walk = town.sim.closest_walk(reader, key)
        town.sim.start(reader, walk)
        town.sim.run()
        truth = set(town.sim.closest_alive(key, 20)) - {reader.id}
        assert set(walk.closest) >= truth


def test_what_is_published_lies_with_the_closest_peers() -> None:
    town = town_of(100, publishers=5)
    assert all(publication.told for publication in town.publications)
    town.sim.run(town.sim.now + 1)  # who published waited for a majority, and the rest are told all the same
    for publication in town.publications:
        closest = town.sim.closest_alive(publication.key, 20)
        holders = [town.sim.nodes[peer] for peer in closest if peer != publication.node.id]
        holding = [bool(node.store.page(publication.key, b"", 65536).sealeds) for node in holders]
        assert sum(holding) >= 0.9 * len(holders)


def test_as_many_come_as_leave_and_publishers_for_publishers() -> None:
    town = town_of(60, publishers=10, upkeep=True)
    town.churn(0.5)
    town.sim.run(town.sim.now + 60)
    assert town.deaths > 10
    assert len(town.living) == 60
    assert sum(publication.node.alive for publication in town.publications) == 10
    town.churn(0.0)
    deaths = town.deaths
    town.sim.run(town.sim.now + 60)
    assert town.deaths == deaths


def test_the_other_side_of_a_partition_is_silent() -> None:
    town = town_of(40, publishers=1)
    sim = town.sim
    for number, node in enumerate(town.honest):
        node.side = number % 2
    sim.cut = True
    reader = town.honest[0]
    walk = sim.closest_walk(reader, b"somewhere")
    sim.start(reader, walk)
    sim.run()
    assert walk.closest
    assert {sim.nodes[peer].side for peer in walk.closest} == {reader.side}


def test_besiegers_lie_closer_than_anybody_honest() -> None:
    town = town_of(60, publishers=1)
    key = town.publications[0].key
    besiege(town, key, 20, one_net=True)
    gang = set(town.sim.nodes) - {node.id for node in town.honest}
    assert set(town.sim.closest_alive(key, 20)) == gang
    assert len({town.sim.nodes[peer].group for peer in gang}) == 1
    town.sim.run(town.sim.now + 60)
    known = sum(contact.id in gang for node in town.honest for contact in node.table)
    assert known > 20  # they have made themselves known


def test_bytes_are_counted_as_they_are_encoded() -> None:
    town = town_of(60, publishers=1)
    node = town.honest[0]
    sender = town.honest[1].id
    key = town.publications[0].key
    town.sim.seeds(node, key)
    for request in (Message(Kind.FIND_NODE, key), Message(Kind.GET_PROVIDERS, key), Message(Kind.PING, b"x")):
        reply = node.server.handle(request, sender, None, 0.0, town.sim.now_us)
        assert reply is not None
        for message in (request, reply):
            framed = len(encode(message)) + FRAMING
            assert wire_bytes(message) == pytest.approx(framed, rel=0.06, abs=8)


@pytest.mark.parametrize("skew", [1.0, 3.0])
def test_the_mean_round_trip_is_as_said(skew: float) -> None:
    sim = Simulator(Random(1), weather=Weather(skew=skew))
    nodes = [sim.add() for _ in range(100)]
    delays = [sim._distance(nodes[0], other) for other in nodes[1:]]
    assert 2 * sum(delays) / len(delays) == pytest.approx(sim.weather.round_trip, rel=0.15)
    assert 0.02 <= min(delays) <= max(delays) <= 0.1


def test_addresses_are_public_and_each_in_a_network_of_its_own() -> None:
    addrs = [address(number) for number in range(1000)]
    assert len({group_of(addr) for addr in addrs}) == 1000
    assert group_of(address(0)) == "11.0.0.0/24"


def test_tables_measure_the_churn_of_their_world_and_keep_few_of_its_dead() -> None:
    """A tenth leaves in a minute: a calm world's tables say less, and after it hardly any entry is dead."""
    town = town_of(40, publishers=2, upkeep=True)
    sim = town.sim
    sim.run(sim.now + 400)
    calm = statistics.median(node.table.churn.rate(sim.now) for node in town.living)
    town.churn(0.1)
    sim.run(sim.now + 500)
    assert calm * 60 < 0.02  # hardly more than what is taken for granted before anything was seen
    measured = statistics.median(node.table.churn.rate(sim.now) for node in town.living)
    assert 0.05 < measured * 60 < 0.2
    intervals = [node.table.churn.interval(sim.now, 600.0) for node in town.living]
    assert 200 < statistics.median(intervals) < 800
    town.churn(0.0)
    sim.run(sim.now + 400)
    entries = [sim.nodes[contact.id].alive for node in town.living for contact in node.table]
    assert entries.count(False) <= 0.02 * len(entries)
