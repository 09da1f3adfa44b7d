"""Sybils: identities ground until they lie closer to a key than anybody honest, which then say nothing true.

They walk and answer like everybody, but name only each other as the closest, acknowledge every record and
throw it away, and hold none. That hides a key on a stock DHT.

Source: Sridhar et al.: Content Censorship in the InterPlanetary File System (NDSS 2024)
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.simulator import Node, Simulator
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message
from simulation.town import BOOTSTRAPS, Town, address, group_of

NET = (0x2D435900 - 0x0B000000) >> 8  # 45.67.89.0/24, for those that share one network
NAMED = 30  # contacts in an answer, as many as an honest one names


@dataclass(slots=True, eq=False)
class Sybil:
    """The answering side of one: it knows nobody but its gang."""

    gang: list[Contact]

    def handle(
        self, request: Message, sender: PeerId, sender_group: str | None, now: float, now_us: int
    ) -> Message | None:
        match request.kind:
            case Kind.FIND_NODE | Kind.GET_PROVIDERS | Kind.GET_VALUE:
                return Message(request.kind, request.key, tuple(self.gang[:NAMED]), records=())
            case _:
                return Message(request.kind, request.key, records=())


def besiege(town: Town, key: bytes, count: int, *, one_net: bool) -> None:
    """Put `count` Sybils closer to `key` than the closest honest peer, and have them join."""
    sim, rng = town.sim, town.rng
    gang: list[Contact] = []
    for peer in _ground(sim, key, count, rng):
        number = NET if one_net else len(sim.nodes)
        addr = address(number)
        if one_net:  # hosts of one network
            addr = addr[:4] + bytes([1 + len(gang) % 254]) + addr[5:]
        node = sim.add(peer, group_of(addr), addr)
        node.server = Sybil(gang)
        gang.append(node.contact)
        _enter(sim, node, rng.sample(town.living, BOOTSTRAPS), key)


def _enter(sim: Simulator, node: Node, via: list[Node], key: bytes) -> None:
    """It walks towards itself and then towards the key, and so those around the key come to know it."""

    def look() -> None:
        sim.start(node, sim.closest_walk(node, key), "sybil")

    sim.join(node, via, lambda _: look())


def _ground(sim: Simulator, key: bytes, count: int, rng: Random) -> list[PeerId]:
    [nearest] = sim.closest_alive(key, 1)
    place = position(key)
    bound = position(nearest) ^ place
    found: list[PeerId] = []
    while len(found) < count:
        peer = PeerId.of_key(rng.randbytes(32))
        if position.__wrapped__(peer) ^ place < bound:  # not by the cache, which the walks need
            found.append(peer)
    return found
