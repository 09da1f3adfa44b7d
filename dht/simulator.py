"""A world of peers in one thread: a heap of events drives real servers and real walks in virtual time.

It charges what the internet charges: a delay for each pair of peers, five round trips for a connection that
is not in the cache, TCP's retransmission where a packet is lost, silence from the dead. Same seed, same
events: `digest` tells two runs apart by their first difference.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.lookup import Done, Patience, Wait
from modelnet_p2p.dht.routing import RoutingTable
from modelnet_p2p.dht.server import KadServer
from modelnet_p2p.dht.store import OfferStore
from modelnet_p2p.dht.walks import Collect, FindClosest, FindPeer, Send, Store, Walk
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Message
from modelnet_p2p.tuning import WAN, Tuning

AnyWalk = Walk | FindClosest | FindPeer | Collect | Store


class Rng(Protocol):
    """What is needed of `random.Random`, which the caller seeds."""

    def random(self) -> float: ...

    def randbytes(self, n: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does to messages."""

    fastest: float = 0.02  # seconds, one way
    slowest: float = 0.1
    loss: float = 0.0  # chance of each message; TCP sends it again
    retransmission: float = 0.3  # seconds until it does, doubled each time
    dial_round_trips: int = 5  # TCP, Noise (2), muxer, kad
    connections: int = 256  # that a peer keeps; the one unused longest is closed


@dataclass(slots=True, eq=False)
class Node:
    """One peer of the world."""

    contact: Contact
    table: RoutingTable
    store: OfferStore
    server: KadServer
    patience: Patience
    group: str | None = None
    alive: bool = True
    connected: dict[PeerId, None] = field(default_factory=dict)  # oldest use first

    @property
    def id(self) -> PeerId:
        return self.contact.id


@dataclass(slots=True, eq=False)
class Run:
    """A walk on its way."""

    node: Node
    walk: AnyWalk
    started: float
    open: dict[PeerId, int] = field(default_factory=dict)  # the number of the request each peer has
    woken: float = float("inf")  # when it is polled next
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.started if self.ended is None else self.ended) - self.started


class Simulator:
    """The world: add peers, start walks, run until nothing is left to happen."""

    def __init__(
        self,
        rng: Rng,
        *,
        tuning: Tuning = WAN,
        weather: Weather | None = None,
        network: str = "public",
        start_us: int = 1_700_000_000_000_000,
    ) -> None:
        self.rng = rng
        self.tuning = tuning
        self.weather = weather or Weather()
        self.network = network
        self.now = 0.0
        self.messages = 0
        self.nodes: dict[PeerId, Node] = {}
        self._start_us = start_us
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._history = hashlib.sha256()

    @property
    def now_us(self) -> int:
        return self._start_us + int(self.now * 1e6)

    @property
    def digest(self) -> str:
        """Of everything that was sent so far, to whom and when."""
        return self._history.hexdigest()

    def add(self, peer: PeerId | None = None, group: str | None = None) -> Node:
        """A new peer that knows nobody."""
        peer = peer or PeerId.of_key(self.rng.randbytes(32))
        table, store = RoutingTable(peer, self.tuning.k), OfferStore()
        server = KadServer(peer, self.network, table, store)
        patience = Patience(self.tuning.patience, self.tuning.request_timeout)
        node = Node(Contact(peer, (bytes(peer[-6:]),)), table, store, server, patience, group)
        self.nodes[peer] = node
        return node

    def join(self, node: Node, via: Iterable[Node]) -> Run:
        """A walk towards itself, from the bootstraps that it was told."""
        for bootstrap in via:
            node.table.add(bootstrap.contact, self.now, bootstrap.group)
        return self.start(node, self.closest_walk(node, bytes(node.id)))

    def closest_walk(self, node: Node, key: bytes) -> FindClosest:
        seeds = node.table.closest(key, self.tuning.k)
        return FindClosest(key, seeds, me=node.id, tuning=self.tuning, patience=node.patience.seconds)

    def start(self, node: Node, walk: AnyWalk) -> Run:
        run = Run(node, walk, self.now)
        self._after(0.0, lambda: self._poll(run))
        return run

    def run(self, until: float = float("inf")) -> None:
        """Let everything happen that happens before `until`."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        if until < float("inf"):
            self.now = max(self.now, until)

    def closest_alive(self, key: bytes, n: int) -> list[PeerId]:
        """The truth that walks are measured against."""
        place = position(key)
        alive = (peer for peer, node in self.nodes.items() if node.alive)
        return heapq.nsmallest(n, alive, key=lambda peer: position(peer) ^ place)

    def _after(self, delay: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def _poll(self, run: Run) -> None:
        while run.ended is None:
            match run.walk.poll(self.now):
                case Send(contact, message, expects_reply):
                    self._send(run, contact, message, expects_reply)
                case Wait(until):
                    if until < run.woken:
                        run.woken = until
                        self._after(max(0.0, until - self.now), lambda: self._wake(run, until))
                    return
                case Done():
                    run.ended = self.now
                    run.node.table.on_walked(run.walk.target, self.now)

    def _wake(self, run: Run, at: float) -> None:
        if run.woken == at:
            run.woken = float("inf")
        self._poll(run)

    def _send(self, run: Run, contact: Contact, message: Message, expects_reply: bool) -> None:
        self.messages += 1
        number = self._count
        there = self.nodes.get(contact.id)
        self._history.update(b"%r %r %d" % (bytes(run.node.id), bytes(contact.id), int(self.now * 1e6)))
        if expects_reply:
            run.open[contact.id] = number
            self._after(self.tuning.request_timeout, lambda: self._fail(run, contact.id, number))
        if there is not None:
            delay = self._dial(run.node, there) + self._one_way(run.node, there)
            sent = self.now
            self._after(delay, lambda: self._arrive(run, there, message, number, sent))

    def _arrive(self, run: Run, there: Node, message: Message, number: int, sent: float) -> None:
        node = run.node
        if not there.alive:
            return
        there.table.add(node.contact, self.now, node.group)
        reply = there.server.handle(message, node.id, node.group, self.now, self.now_us)
        if reply is not None:
            delay = self._one_way(there, node)
            self._after(delay, lambda: self._answer(run, there, reply, number, sent))

    def _answer(self, run: Run, there: Node, reply: Message, number: int, sent: float) -> None:
        if not run.node.alive or run.open.get(there.id) != number:
            return
        del run.open[there.id]
        run.node.connected.setdefault(there.id)
        run.node.patience.on_round_trip(self.now - sent)
        run.node.table.add(there.contact, self.now, there.group)
        run.walk.on_reply(there.id, reply, self.now)
        self._poll(run)

    def _fail(self, run: Run, peer: PeerId, number: int) -> None:
        if run.node.alive and run.open.get(peer) == number:
            del run.open[peer]
            run.node.table.failed(peer, self.now)
            run.walk.on_failure(peer, self.now)
            self._poll(run)

    def _one_way(self, here: Node, there: Node) -> float:
        return self._distance(here, there) + self._lost()

    def _distance(self, here: Node, there: Node) -> float:
        """Seconds one way, the same for a pair at all times."""
        pair = hashlib.sha256(min(here.id, there.id) + max(here.id, there.id)).digest()
        return self.weather.fastest + (self.weather.slowest - self.weather.fastest) * pair[0] / 255

    def _lost(self) -> float:
        """What TCP needs to send a lost packet again, and again."""
        delay, again = 0.0, self.weather.retransmission
        while self.weather.loss and self.rng.random() < self.weather.loss:
            delay += again
            again *= 2
        return delay

    def _dial(self, here: Node, there: Node) -> float:
        """The delay of a cold connection; a warm one moves to the end of the cache."""
        cold = there.id not in here.connected
        if not cold:
            del here.connected[there.id]
        here.connected[there.id] = None
        if len(here.connected) > self.weather.connections:
            del here.connected[next(iter(here.connected))]
        if not cold:
            return 0.0
        packets = 2 * self.weather.dial_round_trips
        return packets * self._distance(here, there) + sum(self._lost() for _ in range(packets))
