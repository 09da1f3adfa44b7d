"""Sybils: identities ground until they lie closer to a key than anybody honest, which then say nothing true.

They walk and answer like everybody, but name only each other as the closest, acknowledge every record and
throw it away, and hold none. That hides a key on a stock DHT.

Source: Sridhar et al.: Content Censorship in the InterPlanetary File System (NDSS 2024)
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from modelnet_p2p.dht.density import Density
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.server import KadServer
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


class Misjudging(Density):
    """The estimate of the network's size, wrong by a factor."""

    def __init__(self, me: PeerId, k: int, factor: float) -> None:
        super().__init__(me, k)
        self._factor = factor

    @property
    def peers(self) -> float | None:
        told = super().peers
        return None if told is None else told * self._factor


def mislead(town: Town, factor: float) -> None:
    """Have everybody take the network for so many times as large as it is."""
    for node in town.honest:
        assert isinstance(node.server, KadServer)
        node.table.density = node.server.density = Misjudging(node.id, node.table.k, factor)
        if not node.asleep:
            around = node.table.closest(node.id, node.table.k)
            node.table.density.on_walked(node.id, [contact.id for contact in around])


def besiege(town: Town, key: bytes, count: int, *, one_net: bool, spread: bool = False) -> None:
    """Put `count` Sybils closer to `key` than the closest honest peer, and have them join.

    With `spread` they lie anywhere among the k closest, which is less work for them.
    """
    sim, rng = town.sim, town.rng
    gang: list[Contact] = []
    for peer in _ground(sim, key, count, rng, sim.tuning.k if spread else 1):
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


def _ground(sim: Simulator, key: bytes, count: int, rng: Random, nth: int) -> list[PeerId]:
    """Identities closer to `key` than the `nth` closest that is alive."""
    place = position(key)
    bound = position(sim.closest_alive(key, nth)[-1]) ^ place
    found: list[PeerId] = []
    while len(found) < count:
        peer = PeerId.of_key(rng.randbytes(32))
        if position.__wrapped__(peer) ^ place < bound:  # not by the cache, which the walks need
            found.append(peer)
    return found
