"""A gang that is two of a joiner's three bootstraps: does the joiner come to know its true neighbours?

The gang knows nobody but itself: whatever it is asked, it names those of its own that are nearest. Once a
joiner has shown up, identities are ground for it, into the very buckets in which its true neighbours belong,
and dial it before anybody else does. Bucket i costs 2^(i+1) keys an identity: among 1,000 peers the 20
closest lie in the buckets from 4 on, and a hundred identities cost some 2^14 keys, which one core makes in a
second. Among a million peers it is 2^24 keys: minutes of that core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from modelnet_p2p.dht.keyspace import common_prefix, position
from modelnet_p2p.dht.simulator import Node
from modelnet_p2p.dht.table.survey import Look, Survey
from modelnet_p2p.dht.walks.finding import FindClosest
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message
from simulation.attack import Attack, Measured
from simulation.town import BOOTSTRAPS, Town, address, group_of

NAMED = 30  # contacts in an answer, as many as an honest one names
GAP_SECONDS = 5.0  # between two joiners
GRIND_SECONDS = 1.0  # from a joiner's first question to the ground identities' dialling it
GIVEN_SECONDS = 60.0  # that a joiner has
WELL = 0.9  # of its true closest: who knows so many is well joined
FIRST_SURVEY_SECONDS = 5.0  # from joining to the first survey, as the product's driver does
NET = 0x400000  # the number of the first /24 that the gang shares: no honest peer's


@dataclass(slots=True, eq=False)
class Gang:
    """All of them, and how they answer."""

    town: Town
    nets: int
    count: int = 0
    shared: list[Contact] = field(default_factory=list)
    ground: dict[PeerId, list[Contact]] = field(default_factory=dict)  # by the victim

    def enlist(self, peer: PeerId | None = None) -> Node:
        """One more, with an address in the next of the shared networks or in one of its own."""
        number = NET + (self.count % self.nets if self.nets else self.count)
        host = 1 + (self.count // self.nets if self.nets else 0) % 254
        addr = address(number)
        addr = addr[:4] + bytes([host]) + addr[5:]
        self.count += 1
        node = self.town.sim.add(peer, group_of(addr), addr)
        node.server = self
        return node

    def handle(
        self, request: Message, sender: PeerId, sender_group: str | None, now: float, now_us: int
    ) -> Message | None:
        """Nobody but the gang is near to anything; records are thanked for and thrown away."""
        if request.kind not in (Kind.FIND_NODE, Kind.GET_PROVIDERS, Kind.GET_VALUE):
            return Message(request.kind, request.key, records=())
        place = position(request.key)
        near = sorted([*self.shared, *self.ground.get(sender, ())], key=lambda one: position(one.id) ^ place)
        return Message(request.kind, request.key, tuple(near[:NAMED]), records=())

    def gather(self, count: int) -> None:
        """The first of them, of no chosen place; they join through honest peers, who come to know them."""
        sim, rng = self.town.sim, self.town.rng
        for _ in range(count):
            node = self.enlist()
            self.shared.append(node.contact)
            sim.join(node, rng.sample(self.town.living, BOOTSTRAPS))

    def grind(self, victim: Node, count: int, neighbours: Sequence[PeerId]) -> None:
        """Identities in the buckets of the victim's neighbours, as many in each as it has room for; they dial
        the victim, all at once."""
        sim, place, rng = self.town.sim, position(victim.id), self.town.rng
        buckets = sorted({common_prefix(place, position(peer)) for peer in neighbours})
        mine = self.ground.setdefault(victim.id, [])
        for number in range(count):
            wanted = buckets[min(number // victim.table.k, len(buckets) - 1)]
            peer = _ground(place, wanted, rng)
            node = self.enlist(peer)
            mine.append(node.contact)
            hello = FindClosest(bytes(victim.id), [victim.contact], me=peer, tuning=sim.tuning)
            sim.start(node, hello, "gang")


@dataclass(slots=True, eq=False)
class Joiner:
    """Somebody who joins, doing what the product's driver does, and how it fared."""

    town: Town
    node: Node
    truth: list[PeerId]
    survey: Survey
    known: float = 0.0  # share of the true closest in its table, at the end

    def enter(self, bootstraps: Sequence[Node]) -> None:
        sim = self.town.sim
        for bootstrap in bootstraps:
            self.survey.on_bootstrap(bootstrap.contact)
        sim.join(self.node, bootstraps, lambda _: sim.after(FIRST_SURVEY_SECONDS, self._survey))

    def _survey(self) -> None:
        sim, rng = self.town.sim, self.town.rng
        looks = self.survey.looks(lambda: sim.now, sim.tuning.table_refresh, lambda: rng.randbytes(32))
        self._look(looks)

    def _look(self, looks: Iterator[Look]) -> None:
        sim, look = self.town.sim, next(looks, None)
        if look is not None:
            purpose = "crowd" if look.n > sim.tuning.k else "refresh"
            sim.start(self.node, sim.looking_walk(self.node, look), purpose, lambda _: self._look(looks))

    def count(self) -> None:
        self.known = sum(peer in self.node.table for peer in self.truth) / len(self.truth)


def play(town: Town, attack: Attack) -> Measured:
    """`attack.trials` joiners, one after the other."""
    sim, gang = town.sim, Gang(town, attack.nets)
    settled = town.living
    gang.gather(attack.gang)
    sim.run(sim.now + GIVEN_SECONDS)
    places = {node.id: position(node.id) for node in settled}
    joiners: list[Joiner] = []
    for _ in range(attack.trials):
        addr = address(len(sim.nodes))
        node = sim.add(None, group_of(addr), addr)
        place = position(node.id)
        truth = sorted(places, key=lambda peer: places[peer] ^ place)[: sim.tuning.k]
        places[node.id] = place  # whoever joined before is a neighbour of those who come
        joiner = Joiner(town, node, truth, Survey(node.table))
        joiners.append(joiner)
        honest = [town.rng.choice(settled)]
        liars = [sim.nodes[one.id] for one in town.rng.sample(gang.shared, min(2, len(gang.shared)))]
        joiner.enter(honest + (liars or town.rng.sample(settled, 2)))
        if attack.ground:
            sim.after(GRIND_SECONDS, partial(gang.grind, node, attack.ground, truth))
        sim.after(GIVEN_SECONDS, joiner.count)
        sim.run(sim.now + GAP_SECONDS)
    sim.run(sim.now + GIVEN_SECONDS)
    known = sorted(joiner.known for joiner in joiners)
    return Measured(
        len(joiners),
        {
            "known_mean": sum(known) / len(known),
            "known_worst": known[0],
            "well_joined": sum(share >= WELL for share in known) / len(known),
        },
    )


def _ground(place: int, bucket: int, rng: Random) -> PeerId:
    while True:
        peer = PeerId.of_key(rng.randbytes(32))
        if common_prefix(position.__wrapped__(peer), place) == bucket:  # not by the cache, which walks need
            return peer
