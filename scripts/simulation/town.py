"""The peers of a world: how they come, what they publish and keep up, how they die.

Records are real and signed, walks, tables, stores and calendars are the product's own; only the driver,
which dials and waits, is replaced. A table may be drawn instead of walked for: k peers at random of each
bucket, of those that truly lie there, made when it is first needed, so that a hundred thousand peers fit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.keyspace import BITS, position
from modelnet_p2p.dht.republish import Due, Renew, Republisher
from modelnet_p2p.dht.simulator import Node, Run, Simulator
from modelnet_p2p.dht.table.checking import Check
from modelnet_p2p.dht.table.survey import refreshing
from modelnet_p2p.dht.walks.lookup import Wait
from modelnet_p2p.dht.walks.shards import Spill
from modelnet_p2p.dht.walks.storing import Store
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.records import Manifest, OfferRecord, Sealed, seal_manifest, seal_offer
from simulation.scenario import World

REFRESH_SECONDS = 30.0  # between two looks at the table, as the product's driver does
BOOTSTRAPS = 3  # that a newcomer is told
JOIN_SECONDS = 0.2  # between two joins while a world is being joined


def address(number: int) -> bytes:
    """A public IPv4 address with a port as a binary multiaddr; each number has a /24 of its own."""
    ip = (0x0B000000 + (number << 8) + 1) & 0xFFFFFFFF
    return b"\x04" + ip.to_bytes(4) + b"\x06" + (4001).to_bytes(2)


def group_of(addr: bytes) -> str:
    return f"{addr[1]}.{addr[2]}.{addr[3]}.0/24"


@dataclass(slots=True, eq=False)
class Publication:
    """One model of one peer."""

    node: Node
    key_pair: KeyPair
    model: str
    key: bytes
    sealed: Sealed
    told: bool = False  # its publish was promised: from now on it must be found


@dataclass(slots=True, eq=False)
class Atlas:
    """Who lies where: all that is needed to draw a table."""

    places: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, nodes: list[Node]) -> Atlas:
        ordered = sorted(nodes, key=lambda node: position(node.id))
        return cls([position(node.id) for node in ordered], ordered)

    def bucket(self, place: int, index: int) -> range:
        """The numbers of those that share exactly `index` leading bits with `place`."""
        width = BITS - index - 1
        low = ((place >> width) ^ 1) << width
        return range(bisect_left(self.places, low), bisect_left(self.places, low + (1 << width)))

    def draw(self, node: Node, rng: Random, now: float, interval: float) -> None:
        """Fill a table with k of each bucket; each was refreshed at some time of the last interval."""
        place = position(node.id)
        for index in range(BITS):
            members = self.bucket(place, index)
            for number in rng.sample(members, min(node.table.k, len(members))):
                other = self.nodes[number]
                node.table.add(other.contact, now, other.group)
            node.table.on_walked(place ^ (1 << (BITS - index - 1)), now - rng.random() * interval)
            if len(self.below(place, index)) <= 1:  # only itself
                break
        node.table.on_walked(place, now - rng.random() * interval)

    def below(self, place: int, index: int) -> range:
        """All that share more than `index` leading bits with `place`."""
        width = BITS - index - 1
        low = (place >> width) << width
        return range(bisect_left(self.places, low), bisect_left(self.places, low + (1 << width)))


class Town:
    """Everybody of a world, and what they have published."""

    def __init__(self, sim: Simulator, rng: Random, world: World) -> None:
        self.sim = sim
        self.rng = rng
        self.world = world
        self.honest: list[Node] = []
        self.publications: list[Publication] = []
        self.deaths = 0
        self._churn = (0.0, 0)  # share in a minute, and which change of it this is
        self._calendars: dict[PeerId, Republisher] = {}
        self._polled: dict[PeerId, float] = {}
        self._spills: dict[tuple[PeerId, bytes], Spill] = {}
        self._held: dict[PeerId, list[Publication]] = {}
        self._keys = Keys(sim.network)
        self._tables = Random(rng.randbytes(8))  # of its own: when a table is drawn changes nothing else

    # --- who is there ---

    @property
    def living(self) -> list[Node]:
        return [node for node in self.honest if node.alive]

    @property
    def churning(self) -> bool:
        return self._churn[0] > 0

    def settle(self, size: int) -> Iterator[int]:
        """Bring `size` peers into the world and have the publishers publish; yields how many are there."""
        if self.world.tables == "drawn":
            nodes = [self._new(publishes=number < self.world.publishers) for number in range(size)]
            atlas, interval = Atlas.of(nodes), self.sim.tuning.table_refresh
            self.sim.wake = lambda node: atlas.draw(node, self._tables, self.sim.now, interval)
            for node in nodes:
                node.asleep = True
                self._begin(node)
            yield size
        else:
            for number in range(size):
                self.newcomer(publishes=number < self.world.publishers)
                self.sim.run(self.sim.now + JOIN_SECONDS)
                yield number + 1
        self.rng.shuffle(self.honest)
        while not all(publication.told for publication in self.publications):
            self.sim.run(self.sim.now + 1.0)

    def newcomer(self, *, publishes: bool) -> Node:
        """Somebody joins by walking, through some that are there."""
        living = self.living
        via = self.rng.sample(living, min(BOOTSTRAPS, len(living)))
        node = self._new(publishes=publishes)
        self.sim.join(node, via, lambda _: self._begin(node))
        return node

    def kill(self, node: Node) -> None:
        node.alive = False
        self.deaths += 1
        self._calendars.pop(node.id, None)

    def churn(self, share: float) -> None:
        """From now on each peer leaves with this chance in a minute, and somebody new comes for it."""
        self._churn = (share, self._churn[1] + 1)
        for node in self.living:
            self._doom(node)

    def _new(self, *, publishes: bool) -> Node:
        pair = KeyPair(self.rng.randbytes(32)) if publishes else None
        addr = address(len(self.sim.nodes))
        node = self.sim.add(pair.id if pair else None, group_of(addr), addr)
        node.store.bounds = replace(node.store.bounds, per_key=self.world.per_key)
        self.honest.append(node)
        if pair is not None:
            model = "sim/hot" if self.world.hot else f"sim/m{len(self.publications)}"
            self._plan(node, pair, model)
        self._doom(node)
        return node

    def _doom(self, node: Node) -> None:
        share, change = self._churn
        if not share:
            return

        def leave() -> None:
            if node.alive and self._churn[1] == change:
                self.kill(node)
                self.newcomer(publishes=node.id in self._held)

        self.sim.after(self.rng.expovariate(share / 60.0), leave)

    # --- what they publish and keep up ---

    def _plan(self, node: Node, pair: KeyPair, model: str) -> Publication:
        key = provider_key(self._keys.model(model))
        publication = Publication(node, pair, model, key, self.sign(pair, model, seq=1))
        self.publications.append(publication)
        self._held.setdefault(node.id, []).append(publication)
        return publication

    def publish_anew(self, publication: Publication) -> None:
        """Sign with the next sequence number and store it."""
        publication.sealed = self.sign(publication.key_pair, publication.model, publication.sealed.seq + 1)
        self.tell(publication)

    def plan(self, owner: Publication, model: str) -> Publication:
        """Another model of somebody who publishes already; nobody is told yet."""
        return self._plan(owner.node, owner.key_pair, model)

    def _begin(self, node: Node) -> None:
        """It has joined: it publishes, and keeps itself up from now on."""
        for publication in self._held.get(node.id, ()):
            self.tell(publication)
        if self.world.upkeep:
            node.on_newcomer = lambda peer: self._on_newcomer(node, peer)
            self.sim.after(self.rng.random() * REFRESH_SECONDS, lambda: self._refresh(node))

    def tell(self, publication: Publication) -> None:
        """Store it now, and as the calendar says from then on."""
        node = publication.node
        calendar = self._calendars.setdefault(node.id, Republisher(self.sim.tuning.republish))
        renew_at = self.sim.now + self.sim.tuning.record_lifetime / 2
        calendar.add({publication.key: publication.sealed}, self.sim.now, renew_at=renew_at)
        self._poll(node)

    def _poll(self, node: Node) -> None:
        """Do what the calendar of that peer says."""
        calendar = self._calendars.get(node.id)
        if calendar is not None:
            calendar.pace(node.table.churn.interval(self.sim.now, self.sim.tuning.republish))
        while calendar is not None and node.alive:
            match calendar.poll(self.sim.now):
                case Due(key, sealeds):
                    self._store(node, key, sealeds)
                case Renew(identities):
                    for publication in [p for p in self._held[node.id] if p.sealed.identity in identities]:
                        self.publish_anew(publication)
                case Wait(until):
                    waits = self.world.upkeep or not all(p.told for p in self._held[node.id])
                    if waits and self._polled.get(node.id, 0.0) != until < float("inf"):
                        self._polled[node.id] = until
                        self.sim.after(max(0.0, until - self.sim.now), lambda: self._poll(node))
                    return

    def _store(self, node: Node, key: bytes, sealeds: tuple[Sealed, ...]) -> None:
        """Under the key, or under a shard of it where it is full."""
        spill = self._spills.setdefault((node.id, key), Spill(key, node.id, self.sim.tuning.record_lifetime))
        self._store_at(node, spill, spill.start(self.sim.now), sealeds)

    def _store_at(self, node: Node, spill: Spill, at: bytes, sealeds: tuple[Sealed, ...]) -> None:
        seeds, key = self.sim.seeds(node, at), spill.key
        walk = Store(
            at,
            sealeds,
            node.contact,
            seeds,
            tuning=self.sim.tuning,
            patience=node.patience.seconds,
            region=node.region,
            ours=lambda _: True,
        )

        def stored(_: Run) -> None:
            report = walk.report
            if isinstance(node.server, KadServer):
                node.server.keep_own(at, sealeds, node.contact)
            if (shard := spill.after(report)) is not None:
                self._store_at(node, spill, shard, sealeds)
                return
            calendar = self._calendars.get(node.id)
            if calendar is not None:
                calendar.on_stored(key, self.sim.now, promised=report.promised, alone=report.alone)
            for publication in self._held[node.id] if report.promised else ():
                publication.told = publication.told or publication.sealed in sealeds
            self._poll(node)

        self.sim.start(node, walk, "store", stored)

    def _on_newcomer(self, node: Node, peer: PeerId) -> None:
        calendar = self._calendars.get(node.id)
        if calendar is not None:
            table, now = node.table, self.sim.now
            calendar.on_neighbour(now)
            calendar.on_newcomer(lambda key: any(c.id == peer for c in table.closest(key, table.k)), now)
            self._poll(node)

    def _refresh(self, node: Node) -> None:
        """Ask the silent, then look up, one by one, what the table has no news of; again in a while."""
        if not node.alive:
            return
        self.sim.seeds(node, bytes(node.id))  # its table is there
        node.store.expire(self.sim.now_us)
        self._poll(node)  # records are told again as often as peers are seen to die
        tuning = self.sim.tuning

        def checked(_: Run) -> None:
            self._walk_stale(node, node.table.stale(self.sim.now, tuning.table_refresh))

        doubtful = node.table.doubtful(self.sim.now, tuning.table_refresh, node.connected.__contains__)
        check = Check(doubtful, tuning.alpha)
        self.sim.start(node, check, "check", checked)

    def _walk_stale(self, node: Node, stale: list[int]) -> None:
        if not stale:
            self.sim.after(REFRESH_SECONDS, lambda: self._refresh(node))
            return
        look = refreshing(node.table, stale[0], self.rng.randbytes(8))
        walk = self.sim.looking_walk(node, look)
        self.sim.start(node, walk, "refresh", lambda _: self._walk_stale(node, stale[1:]))

    def sign(self, pair: KeyPair, model: str, seq: int, version: str = "") -> Sealed:
        now_us = self.sim.now_us
        manifest = Manifest(
            owner=pair.id,
            name=model,
            version=version,
            task="text-classification",
            licence="mit",
            digest=None,
            issued_unix=now_us // 1_000_000,
        )
        record = OfferRecord(
            provider=pair.id,
            network=self.sim.network,
            manifest=manifest,
            manifest_envelope=seal_manifest(manifest, pair),
            seq=seq,
            issued_us=now_us,
            expires_us=now_us + int(self.sim.tuning.record_lifetime * 1e6),
        )
        return seal_offer(record, pair)
