"""A gang that lies to whoever sounds how many peers there are: what it makes of the estimate.

Its identities were ground beforehand; wherever it is asked, it names those that lie nearest, so that the
network seems as dense as its pool. Every table holds as many of the gang as it lets in.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from statistics import median

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.simulator import Node, Simulator
from modelnet_p2p.dht.table.density import Density
from modelnet_p2p.dht.table.survey import Look
from modelnet_p2p.dht.walks.finding import of_no_group
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Message
from modelnet_p2p.tuning import WAN

HONEST = 200
POOL = 10 * HONEST  # identities of the gang: one core makes so many keys in a tenth of a second
DIALLED = 30  # of them that dial everybody: more than a table keeps of one IP group
NAMED = 30  # contacts in an answer, as many as an honest one names
WALKS = 24
NETS = ("66.6.6.0/24", "66.6.7.0/24")


@dataclass(slots=True, eq=False)
class Gang:
    """Whatever one of it is asked, it names those of the pool that lie nearest."""

    pool: list[Contact]  # by their positions
    places: list[int]

    def handle(
        self, request: Message, sender: PeerId, sender_group: str | None, now: float, now_us: int
    ) -> Message:
        place = position(request.key)
        at = bisect(self.places, place)
        around = self.pool[max(0, at - NAMED) : at + NAMED]
        near = sorted(around, key=lambda one: position(one.id) ^ place)[:NAMED]
        return Message(request.kind, request.key, tuple(near), records=())


def besieged(nets: Sequence[str], *, there: bool) -> tuple[Simulator, list[Node]]:
    """A world and who is honest in it; all the pool answers where it is `there`, else those that dialled."""
    rng, world = Random(4), Simulator(Random(5), tuning=WAN)
    honest = [world.add(group=f"11.0.{number}.0/24") for number in range(HONEST)]
    contacts = [Contact(PeerId.of_key(rng.randbytes(32)), (b"gang",)) for _ in range(POOL if nets else 0)]
    dialled = contacts[:DIALLED]
    contacts.sort(key=lambda one: position(one.id))
    gang = Gang(contacts, [position(one.id) for one in contacts])
    for number, contact in enumerate(contacts if there else dialled):
        world.add(contact.id, nets[number % len(nets)]).server = gang

    def draw(node: Node) -> None:
        for one in [*dialled, *(other.contact for other in rng.sample(honest, HONEST))]:
            node.table.add(one, world.now, world.nodes[one.id].group)

    world.wake = draw
    for node in honest:
        node.asleep = True
    return world, honest


def sounded(nets: Sequence[str], *, there: bool, grouped: bool) -> list[float]:
    """How many peers each of the soundings says that there are, those that say nothing left out."""
    world, honest = besieged(nets, there=there)
    rng, said = Random(6), list[float]()
    for node in honest[:WALKS]:
        key, density = rng.randbytes(34), Density(node.id, WAN.k)
        seeds, group_of = world.seeds(node, key), partial(world.group_of, node)
        walk = Look(key).walk(seeds, node.id, WAN, group_of=group_of if grouped else of_no_group)
        world.start(node, walk)
        world.run()
        density.on_walked(key, walk.closest, known=len(node.table))
        if density.peers is not None:
            said.append(density.peers)
    return said


def test_a_gang_of_one_network_that_answers_as_all_it_names_makes_the_network_no_larger() -> None:
    honest = median(sounded((), there=True, grouped=True))
    assert 0.8 * HONEST < honest < 1.2 * HONEST
    before = sounded(NETS[:1], there=True, grouped=False)
    assert median(before) > 3 * HONEST
    after = sounded(NETS[:1], there=True, grouped=True)
    assert len(after) > 0.75 * WALKS  # the others were in vain
    assert median(after) < 1.3 * honest
    assert max(after) < 2.5 * HONEST


def test_nobody_believes_those_of_whom_one_network_alone_says_that_they_are_there() -> None:
    assert max(sounded(NETS[:1], there=False, grouped=False)) > 5 * HONEST
    after = sounded(NETS[:1], there=False, grouped=True)
    assert len(after) > 0.75 * WALKS
    assert max(after) < 2.5 * HONEST


def test_a_gang_of_two_networks_moves_the_median_and_not_the_least_and_is_noticed() -> None:
    said = sounded(NETS, there=True, grouped=True)
    assert median(said) > 3 * HONEST
    assert min(said) < 2 * HONEST
    assert max(said) > 2.5 * min(said)


def test_in_one_laboratory_two_neighbours_are_two_tellers() -> None:
    world = Simulator(Random(7), tuning=WAN)
    alice, *others = [world.add(group="8.8.8.0/24") for _ in range(60)]
    for node in others:
        world.join(node, [alice])
        world.run()
    assert not alice.table.mixed
    key = Random(8).randbytes(34)
    walk = world.looking_walk(alice, Look(key))
    world.start(alice, walk)
    world.run()
    assert len(set(walk.closest) & set(world.closest_alive(key, WAN.k))) > 0.75 * WAN.k
    stranger = world.add(group="9.9.9.0/24")
    world.join(stranger, [alice])
    world.run()
    assert alice.table.mixed
