"""A world of peers in one thread: a heap of events drives real servers and real walks in virtual time.

It charges what the internet charges: a delay for each pair of peers, five round trips and the handshake's
arithmetic for a connection that is not in the cache, TCP's retransmission where a packet is lost, silence
from the dead and from the other side of a partition. It counts messages and bytes by what they are for.
Same seed, same events: `digest` tells two runs apart by their first difference.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import OfferStore
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.table.checking import Check
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.table.survey import Look
from modelnet_p2p.dht.walks.collecting import Collect
from modelnet_p2p.dht.walks.finding import FindClosest, FindPeer, Send, Sounding, Walk
from modelnet_p2p.dht.walks.lookup import Done, Wait
from modelnet_p2p.dht.walks.patience import Patience
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.dht.walks.storing import Store
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Message
from modelnet_p2p.tuning import WAN, Tuning

AnyWalk = Walk | FindClosest | FindPeer | Collect | Store | Check

# What a message has around its key, contacts and records: the protobuf's own tags and length (6), Noise's
# frame (18), the muxer's (12), TCP and IP (40).
ENVELOPE_BYTES = 76
SPOTS = 1 << 16  # places on the map that delays are taken from


class Rng(Protocol):
    """What is needed of `random.Random`, which the caller seeds."""

    def random(self) -> float: ...

    def randbytes(self, n: int, /) -> bytes: ...


class Answering(Protocol):
    """The side of a peer that answers: a KadServer, or somebody who lies."""

    def handle(
        self, request: Message, sender: PeerId, sender_group: str | None, now: float, now_us: int
    ) -> Message | None: ...


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does to messages."""

    fastest: float = 0.02  # seconds, one way
    slowest: float = 0.1
    skew: float = 1.0  # of the delays between both: 1 spreads them evenly, 3 makes most pairs near
    loss: float = 0.0  # chance of each message; TCP sends it again
    retransmission: float = 0.3  # seconds until it does, doubled each time
    dial_round_trips: int = 5  # TCP, Noise (2), muxer, kad
    handshake: float = 0.0  # seconds of arithmetic, both ends together
    connections: int = 256  # that a peer keeps; the one unused longest is closed

    @property
    def round_trip(self) -> float:
        """Seconds there and back between two peers, on average."""
        return 2 * (self.fastest + (self.slowest - self.fastest) / (self.skew + 1))


@dataclass(slots=True, eq=False)
class Node:
    """One peer of the world."""

    contact: Contact
    table: RoutingTable
    store: OfferStore
    server: Answering
    patience: Patience
    group: str | None = None
    alive: bool = True
    refuses: bool = False  # dead, but its machine runs on and says so; else the dead are silent
    thaws: float = 0.0  # until then it stands still: what comes to it, and what it would do, waits
    side: int = 0  # of a partition
    asleep: bool = False  # its table is not made yet: `Simulator.wake` is called before it is needed
    spot: int = 0  # on the map that delays are taken from
    served: int = 0  # requests
    connected: dict[PeerId, None] = field(default_factory=dict)  # oldest use first
    on_newcomer: Callable[[PeerId], None] | None = None  # somebody has entered its table

    @property
    def id(self) -> PeerId:
        return self.contact.id

    @property
    def region(self) -> Region | None:
        """Where it expects a key's holders."""
        return self.table.density.region


@dataclass(slots=True, eq=False)
class Run:
    """A walk on its way. One whose peer has died never ends."""

    node: Node
    walk: AnyWalk
    started: float
    purpose: str = ""
    then: Callable[[Run], None] | None = None
    open: dict[PeerId, int] = field(default_factory=dict)  # the number of the request each peer has
    woken: float = float("inf")  # when it is polled next
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.started if self.ended is None else self.ended) - self.started


def wire_bytes(message: Message) -> int:
    """About what a message takes on the wire; encoding each would cost more than all the rest."""
    size = ENVELOPE_BYTES + len(message.key) + len(message.cursor) + len(message.refused)
    for contacts in (message.closer, message.providers):
        if contacts:  # all contacts of a world have one address of one length
            first = contacts[0]
            each = 4 + len(first.id) + sum(len(addr) + 2 for addr in first.addrs)  # with tags and lengths
            size += len(contacts) * each
    if message.value is not None:
        size += len(message.value.key) + len(message.value.value)
    return size + sum(len(envelope) + 3 for envelope in message.records or ())


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
        self.sent: Counter[str] = Counter()  # requests and replies by purpose
        self.sent_bytes: Counter[str] = Counter()
        self.messages = 0  # requests
        self.cut = False  # whether sides of different numbers hear each other
        self.wake: Callable[[Node], None] | None = None
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
        """Of everything that was asked so far, of whom and when."""
        return self._history.hexdigest()

    def add(self, peer: PeerId | None = None, group: str | None = None, addr: bytes | None = None) -> Node:
        """A new peer that knows nobody; `addr` is the binary multiaddr that others are told."""
        peer = peer or PeerId.of_key(self.rng.randbytes(32))
        table, store = RoutingTable(peer, self.tuning.k), OfferStore(secret=bytes(peer))
        server = KadServer(peer, self.network, table, store)
        patience = Patience(self.tuning.patience, self.tuning.request_timeout)
        contact = Contact(peer, (addr or bytes(peer[-6:]),))
        node = Node(contact, table, store, server, patience, group, spot=position(peer) % SPOTS)
        self.nodes[peer] = node
        return node

    def join(self, node: Node, via: Iterable[Node], then: Callable[[Run], None] | None = None) -> Run:
        """A walk towards itself, from the bootstraps that it was told."""
        for bootstrap in via:
            node.table.add(bootstrap.contact, self.now, bootstrap.group)
        return self.start(node, self.closest_walk(node, bytes(node.id)), "join", then)

    def seeds(self, node: Node, key: bytes) -> list[Contact]:
        """Where a walk of that peer begins."""
        self._awake(node)
        return node.table.closest(key, self.tuning.k)

    def closest_walk(
        self, node: Node, key: bytes, on_ours: Callable[[PeerId], None] | None = None
    ) -> FindClosest:
        """Towards the k closest, from the closest known."""
        return FindClosest(
            key,
            self.seeds(node, key),
            me=node.id,
            tuning=self.tuning,
            patience=node.patience.seconds,
            on_ours=on_ours,
        )

    def looking_walk(self, node: Node, look: Look) -> FindClosest | Sounding:
        """One that keeps a table true, which nobody waits for."""
        seeds = look.seeds or self.seeds(node, look.target)
        return look.walk(seeds, node.id, self.tuning, group_of=lambda peer: self.group_of(node, peer))

    def group_of(self, node: Node, peer: PeerId) -> str | None:
        """The group of a peer that answers `node`; None where all are of one."""
        return self.nodes[peer].group if node.table.mixed else None

    def start(
        self, node: Node, walk: AnyWalk, purpose: str = "", then: Callable[[Run], None] | None = None
    ) -> Run:
        """Begin a walk now; `then` is called when it has ended."""
        run = Run(node, walk, self.now, purpose, then)
        self.after(0.0, lambda: self._poll(run))
        return run

    def tell(self, run: Run, send: Send, purpose: str) -> None:
        """One message of somebody whose walk has ended; what is answered does not matter."""
        self._send(Run(run.node, run.walk, self.now, purpose), send.contact, send.message, False)

    def run(self, until: float = float("inf")) -> None:
        """Let everything happen that happens before `until`."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        if until < float("inf"):
            self.now = max(self.now, until)

    def after(self, delay: float, event: Callable[[], None]) -> None:
        """Have something happen so many seconds from now."""
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def carry(
        self,
        here: Node,
        there: Node,
        size: int,
        purpose: str,
        then: Callable[[], None],
        *,
        reply: bool = False,
    ) -> None:
        """Send `size` bytes that are no request of a walk; `then` happens where and when they arrive.

        A `reply` goes back over the connection that its question came over.
        """
        self.sent[purpose] += 1
        self.sent_bytes[purpose] += size
        self._history.update(here.id + there.id + int(self.now * 1e6).to_bytes(8))
        delay = self._one_way(here, there) + (0.0 if reply else self._dial(here, there))
        self.after(delay, lambda: self._hand_over(here, there, then))

    def postponed(self, node: Node, event: Callable[[], None]) -> bool:
        """Whether that peer stands still; if so, this happens as soon as it moves again."""
        if node.thaws <= self.now:
            return False
        self.after(node.thaws - self.now, event)
        return True

    def closest_alive(self, key: bytes, n: int) -> list[PeerId]:
        """The truth that walks are measured against."""
        place = position(key)
        alive = (peer for peer, node in self.nodes.items() if node.alive)
        return heapq.nsmallest(n, alive, key=lambda peer: position(peer) ^ place)

    def connect(self, here: Node, there: Node) -> None:
        """Both ends have a connection and used it last; who has too many closes the one unused longest."""
        for one, other in ((here, there), (there, here)):
            one.connected.pop(other.id, None)
            one.connected[other.id] = None
            if len(one.connected) > self.weather.connections:
                oldest = next(iter(one.connected))
                self.disconnect(one, self.nodes[oldest])

    def disconnect(self, here: Node, there: Node) -> None:
        here.connected.pop(there.id, None)
        there.connected.pop(here.id, None)

    def _awake(self, node: Node) -> None:
        if node.asleep:
            node.asleep = False
            if self.wake is not None:
                self.wake(node)
                around = node.table.closest(node.id, node.table.k)
                node.table.on_walked(node.id, self.now, [contact.id for contact in around])

    def _hand_over(self, here: Node, there: Node, then: Callable[[], None]) -> None:
        if not there.alive or self._parted(here, there):
            return
        if not self.postponed(there, lambda: self._hand_over(here, there, then)):
            self.connect(there, here)
            then()

    def _poll(self, run: Run) -> None:
        if self.postponed(run.node, lambda: self._poll(run)):
            return
        while run.node.alive and (run.ended is None or run.walk.unfinished):
            match run.walk.poll(self.now):
                case Send(contact, message, expects_reply):
                    self._send(run, contact, message, expects_reply)
                case Wait(until):
                    if until < run.woken:
                        run.woken = until
                        self.after(max(0.0, until - self.now), lambda: self._wake_up(run, until))
                    return
                case Done() if run.ended is not None:
                    return
                case Done():
                    run.ended = self.now
                    if isinstance(run.walk, Walk):
                        closest = run.walk.closest if isinstance(run.walk, FindClosest | Sounding) else ()
                        run.node.table.on_walked(run.walk.target, self.now, closest)
                    if run.then is not None:
                        run.then(run)

    def _wake_up(self, run: Run, at: float) -> None:
        if run.woken == at:
            run.woken = float("inf")
        self._poll(run)

    def _send(self, run: Run, contact: Contact, message: Message, expects_reply: bool) -> None:
        self._spend(run, message)
        self.messages += 1
        number = self._count
        there = self.nodes.get(contact.id)
        self._history.update(run.node.id + contact.id + int(self.now * 1e6).to_bytes(8))
        if expects_reply:
            run.open[contact.id] = number
            self.after(self.tuning.request_timeout, lambda: self._fail(run, contact.id, number))
        if there is not None:
            delay = self._dial(run.node, there) + self._one_way(run.node, there)
            sent = self.now
            self.after(delay, lambda: self._arrive(run, there, message, number, sent))

    def _arrive(self, run: Run, there: Node, message: Message, number: int, sent: float) -> None:
        node = run.node
        if not there.alive or self._parted(node, there):
            if there.refuses and not self._parted(node, there):
                self.after(self._one_way(there, node), lambda: self._fail(run, there.id, number))
            return
        if self.postponed(there, lambda: self._arrive(run, there, message, number, sent)):
            return
        self._awake(there)
        there.served += 1
        self.connect(there, node)
        self._met(there, node)
        reply = there.server.handle(message, node.id, node.group, self.now, self.now_us)
        if reply is not None:
            self._spend(run, reply)
            delay = self._one_way(there, node)
            self.after(delay, lambda: self._answer(run, there, reply, number, sent))

    def _answer(self, run: Run, there: Node, reply: Message, number: int, sent: float) -> None:
        node = run.node
        if not node.alive or run.open.get(there.id) != number or self._parted(node, there):
            return
        if self.postponed(node, lambda: self._answer(run, there, reply, number, sent)):
            return
        del run.open[there.id]
        node.patience.on_round_trip(self.now - sent)
        self._met(node, there)
        run.walk.on_reply(there.id, reply, self.now)
        self._poll(run)

    def _fail(self, run: Run, peer: PeerId, number: int) -> None:
        if run.node.alive and run.open.get(peer) == number:
            if self.postponed(run.node, lambda: self._fail(run, peer, number)):
                return
            del run.open[peer]
            if (there := self.nodes.get(peer)) is not None:
                self.disconnect(run.node, there)
            run.node.table.failed(peer, self.now)
            run.walk.on_failure(peer, self.now)
            self._poll(run)

    def _met(self, node: Node, other: Node) -> None:
        """It heard from the other, who can be dialled."""
        new = node.on_newcomer is not None and other.id not in node.table
        node.table.add(other.contact, self.now, other.group)
        if new and node.on_newcomer is not None and other.id in node.table:
            node.on_newcomer(other.id)

    def _spend(self, run: Run, message: Message) -> None:
        self.sent[run.purpose] += 1
        self.sent_bytes[run.purpose] += wire_bytes(message)

    def _parted(self, here: Node, there: Node) -> bool:
        return self.cut and here.side != there.side

    def _one_way(self, here: Node, there: Node) -> float:
        return self._distance(here, there) + self._lost()

    def _distance(self, here: Node, there: Node) -> float:
        """Seconds one way, the same for a pair at all times."""
        share: float = ((here.spot ^ there.spot) / (SPOTS - 1)) ** self.weather.skew
        return self.weather.fastest + (self.weather.slowest - self.weather.fastest) * share

    def _lost(self) -> float:
        """What TCP needs to send a lost packet again, and again."""
        delay, again = 0.0, self.weather.retransmission
        while self.weather.loss and self.rng.random() < self.weather.loss:
            delay += again
            again *= 2
        return delay

    def _dial(self, here: Node, there: Node) -> float:
        """The delay of a cold connection; a warm one moves to the end of the cache."""
        if there.id in here.connected:
            del here.connected[there.id]
            here.connected[there.id] = None
            return 0.0
        packets = 2 * self.weather.dial_round_trips
        delay = packets * self._distance(here, there) + sum(self._lost() for _ in range(packets))
        return delay + self.weather.handshake
