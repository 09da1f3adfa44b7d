"""Runs walks, keeps the table true and the peer joined; `asking` and `answering` carry the messages.

Every decision is taken by a machine of `dht/`: this page sends, waits and reports back. A
walk that is over leaves its open requests running in the background until their own timeout: cancelling
one would reset the stream that others wait on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.table.checking import Check
from modelnet_p2p.dht.table.routing import Place, RoutingTable
from modelnet_p2p.dht.table.survey import Look, Survey
from modelnet_p2p.dht.table.warmth import Warmth
from modelnet_p2p.dht.walks.finding import FindClosest, FindPeer, Send
from modelnet_p2p.dht.walks.lookup import Done, Wait
from modelnet_p2p.errors import ModelnetError, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.names import protocol
from modelnet_p2p.node.overlay.answering import Answering
from modelnet_p2p.node.overlay.asking import Asking
from modelnet_p2p.node.overlay.course import Course, Machine, unheard
from modelnet_p2p.node.transport.addresses import binaries, split_p2p, texts, to_binary
from modelnet_p2p.node.transport.contract import Network
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)

MAX_EVENTS = (
    1024  # connections that came or went and were not looked at yet; more are dropped and found later
)
FIRST_SURVEY_SECONDS = 5.0  # from joining to looking through all buckets: who came first is not all there is
SETTLE_SECONDS = 1.0  # from a newcomer to looking around again: others come right behind it
TRIM_SECONDS = 2.0  # between two looks for connections that are of no use any more
REFRESH_SECONDS = 30.0  # between two looks at the table, and for records that are over
MAX_BEHIND = 8  # walks that go on behind who stores without pause: with 1, 4 or 8 as much is stored a second


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How the bootstraps fared: text multiaddrs with `/p2p/…`."""

    tried: tuple[str, ...]
    reached: tuple[str, ...]
    causes: Mapping[str, str] = field(default_factory=dict)  # why, of each that did not answer
    strangers: tuple[str, ...] = ()  # they answer, and are of another network


class Overlay:
    """One peer's part in the DHT. Made by `open_overlay`."""

    def __init__(
        self,
        network: Network,
        server: KadServer,
        table: RoutingTable,
        tuning: Tuning,
        name: str,
        wall_us: Callable[[], int],
        nursery: trio.Nursery,
    ) -> None:
        self.network = network
        self.server = server
        self.table = table
        self.tuning = tuning
        self.name = name
        self.wall_us = wall_us
        self.density = server.density
        self._survey = Survey(table)
        self.warmth = Warmth(tuning.kept_connections)
        self.answering = Answering(network, server, self.warmth, tuning, wall_us)
        kad = self._protocol = protocol(name, "kad")
        self.asking = Asking(network, table, self.warmth, tuning, kad, self._arrive, nursery)
        self.patience = self.asking.patience
        self._newcomers: list[Callable[[PeerId], None]] = []
        self._came = trio.Event()  # somebody who was not in the table
        self._many = trio.Event()  # connections, more than are kept
        self._behind: dict[Machine, float] = {}  # walks whose callers have gone on, and until when they count
        self._ended = trio.lowlevel.ParkingLot()  # where to wait until one of them has
        self._own_protocol = protocol(name, "beat")  # no stock peer speaks it
        self._nursery = nursery
        self._arrivals, self._arrived = trio.open_memory_channel[PeerId](MAX_EVENTS)

    # --- walks ---

    @property
    def me(self) -> PeerId:
        return self.network.id

    def contact(self) -> Contact:
        """Where I am, as others are told."""
        return Contact(self.me, tuple(to_binary(split_p2p(addr)[1]) for addr in self.network.addrs))

    def now(self) -> float:
        """Monotonic seconds, as walks are told them."""
        return trio.current_time()

    def seeds(self, key: bytes) -> list[Contact]:
        """The peers from which a walk to `key` starts."""
        return self.table.closest(key, self.tuning.k)

    def group_of(self, peer: PeerId) -> str | None:
        """The IP group of a connected peer: what two of one tell is told once. None where all are of one."""
        return self.network.remote_group(peer) if self.table.mixed else None

    async def run(self, walk: Machine) -> None:
        """Drive `walk` until it is done; what is left of it then goes on in the background."""
        course = Course(walk)
        with ExitStack() as ending:
            ending.callback(course.close)
            await self._drive(course)
            if walk.unfinished:
                self._behind[walk] = trio.current_time() + self.patience.seconds
                self._nursery.start_soon(self._finish, course, ending.pop_all())

    async def keep_pace(self) -> None:
        """Wait until no more than MAX_BEHIND walks go on behind their callers.

        For whoever stores without pause, between two stores: else so much is asked that answers come late,
        and their senders are taken for silent. Walks that are out of patience ask nobody, and do not count.
        """
        while True:
            now = trio.current_time()
            self._behind = {walk: until for walk, until in self._behind.items() if until > now}
            if len(self._behind) <= MAX_BEHIND:
                return
            with trio.move_on_at(min(self._behind.values())):
                await self._ended.park()

    async def _drive(self, course: Course) -> None:
        while True:
            match course.poll():
                case Send(contact, message, expects_reply):
                    self.asking.send(contact, message, course.tell if expects_reply else None)
                case Wait(until):
                    await course.hear(until)
                case Done():
                    return

    async def _finish(self, course: Course, ending: ExitStack) -> None:
        try:
            with ending:
                await self._drive(course)
                while course.walk.unfinished:
                    await course.hear()  # each of its requests ends, at the latest by its timeout
                    await self._drive(course)
        finally:
            self._behind.pop(course.walk, None)
            self._ended.unpark_all()

    def tell(self, send: Send) -> None:
        """One message in the background; what is answered does not matter."""
        self.asking.send(send.contact, send.message, unheard)

    def known_addrs(self, peer: PeerId) -> tuple[str, ...]:
        """The text addresses of `peer` that need no asking: of its connection, or in the table."""
        found = self.network.peer_addrs(peer)
        if found:
            return found
        return next((texts(c.addrs) for c in self.table.closest(peer, 1) if c.id == peer), ())

    async def find_peer(self, peer: PeerId) -> tuple[str, ...]:
        """The text addresses of `peer`, from its connection or from the DHT; empty if nobody knows any."""
        if known := self.known_addrs(peer):
            return known
        walk = FindPeer(
            peer,
            self.seeds(peer),
            me=self.me,
            tuning=self.tuning,
            patience=self.patience.seconds,
            group_of=self.group_of,
        )
        await self.run(walk)
        return texts(walk.found.addrs) if walk.found else ()

    async def find_closest(
        self, key: bytes, on_ours: Callable[[PeerId], None] | None = None
    ) -> tuple[PeerId, ...]:
        """Those of ours closest to `key`, nearest first; `on_ours` hears of each that answers, at once."""
        walk = FindClosest(
            key,
            self.seeds(key),
            me=self.me,
            tuning=self.tuning,
            patience=self.patience.seconds,
            on_ours=on_ours,
        )
        await self.run(walk)
        return walk.closest_ours

    # --- joining, and staying joined ---

    async def bootstrap(self, addrs: Sequence[str]) -> Bootstrap:
        """Dial the given text multiaddrs at the same time, then look for myself; warns of the unreached."""
        reached: list[str] = []
        strangers: list[str] = []
        causes: dict[str, str] = {}

        async def dial(addr: str) -> None:
            peer, where = split_p2p(addr)
            if peer is None:
                raise AssertionError("checked by check_bootstraps")
            try:
                if not await self.meet(peer, [where]):
                    strangers.append(addr)
                    log.warning("bootstrap %s is no peer of the network %s", addr, self.name)
                    return
                self._survey.on_bootstrap(Contact(peer, binaries([where])))
                reached.append(addr)
            except ModelnetError as error:
                causes[addr] = error.message
                log.warning("bootstrap %s did not answer: %s", addr, error.message)

        others = [addr for addr in addrs if split_p2p(addr)[0] != self.me]
        async with trio.open_nursery() as nursery:
            for addr in others:
                nursery.start_soon(dial, addr)
        if reached:
            await self.look_around()

        def in_order(some: Sequence[str]) -> tuple[str, ...]:
            return tuple(addr for addr in others if addr in some)

        return Bootstrap(tuple(others), in_order(reached), causes, in_order(strangers))

    async def meet(self, peer: PeerId, addrs: Sequence[str]) -> bool:
        """Connect to `peer` at these text addresses, and put it into the table if it is of our network.

        False if it is not; raises RemoteError if it cannot be reached, or does not say what it speaks.
        """
        await self.network.connect(peer, addrs)
        return await self._meet(peer)

    async def look_around(self) -> None:
        """Learn the peers closest to me."""
        await self._look_up(Look(bytes(self.me), n=self.tuning.k), self.patience.seconds)

    async def _look_up(self, look: Look, patience: float | None = None) -> None:
        seeds = look.seeds or self.seeds(look.target)
        walk = look.walk(seeds, self.me, self.tuning, patience, self.group_of)
        await self.run(walk)
        self.table.on_walked(look.target, trio.current_time(), walk.closest)

    async def _meet(self, peer: PeerId) -> bool:
        """Put a connected peer into the table if it says that it speaks our kad protocol; whether it does."""
        spoken = await self.network.protocols(peer)
        if self._protocol not in spoken:
            return False
        if self._own_protocol in spoken:
            self.asking.on_ours(peer)
        addrs = binaries(self.network.peer_addrs(peer))
        if not addrs:
            return True  # and nobody could dial it
        known = peer in self.table
        place = self.table.add(Contact(peer, addrs), trio.current_time(), self.network.remote_group(peer))
        # one that comes back may have been started anew, and hold nothing, where none is let go for its cost
        if place is Place.TABLE and not (known and self.warmth.scarce):
            self._came.set()
            for callback in self._newcomers:
                callback(peer)
        return True

    def on_newcomer(self, callback: Callable[[PeerId], None]) -> None:
        """Call back whenever a peer enters the table; quick, and must not raise."""
        self._newcomers.append(callback)

    async def watch_arrivals(self) -> None:
        """Meet whoever connects; one at a time would let a silent one hold up the rest."""

        async def meet(peer: PeerId) -> None:
            try:
                await self._meet(peer)
            except RemoteError as error:
                log.debug("%s did not say what it speaks: %s", peer.short, error.message)

        async for peer in self._arrived:
            self._nursery.start_soon(meet, peer)

    def on_connected(self, peer: PeerId) -> None:
        self.warmth.on_connected(peer, trio.current_time())
        if len(self.warmth) > self.warmth.kept:
            self._many.set()
        self._arrive(peer)

    def _arrive(self, peer: PeerId) -> None:
        try:
            self._arrivals.send_nowait(peer)
        except trio.WouldBlock:
            log.warning("too many peers connect at once; %s is met later", peer.short)

    def on_disconnected(self, peer: PeerId) -> None:
        self.asking.on_gone(peer)
        self.warmth.on_gone(peer)

    async def settle(self) -> None:
        """While fewer are known than a bucket holds, look around again: soon after somebody came, then ever
        more rarely. Whom a joiner asks first may have come just before it and know nobody yet."""
        pause = SETTLE_SECONDS
        while True:
            self._came = trio.Event()
            with trio.move_on_after(pause):
                await self._came.wait()
            if self._came.is_set():
                pause = SETTLE_SECONDS
                await trio.sleep(SETTLE_SECONDS)
            else:
                pause = min(2 * pause, self.tuning.table_refresh)
            k, coming = self.tuning.k, len(self.network.connected()) if pause == SETTLE_SECONDS else 0
            if self.table and max(len(self.table), coming) < k:  # who is connected says soon who it is
                await self._look_up(Look(bytes(self.me), n=self.tuning.k))

    async def trim(self) -> None:
        """Close what connections there are too many of."""
        while True:
            await trio.sleep(TRIM_SECONDS)
            if len(self.warmth) <= self.warmth.kept:
                self._many = trio.Event()
                await self._many.wait()
                continue
            near = {contact.id for contact in self.table.closest(bytes(self.me), self.tuning.k)}

            def worth(peer: PeerId, near: Container[PeerId] = near) -> int:
                return 2 if peer in near else 1 if peer in self.table else 0

            for peer in self.warmth.surplus(trio.current_time(), self.network.idle, worth):
                if self.network.idle(peer):  # still, after those before it
                    await self.network.disconnect(peer)

    async def refresh(self) -> None:
        """Ask the silent, look up what the table has no news of, and forget what is over."""
        interval, pause = self.tuning.table_refresh, FIRST_SURVEY_SECONDS
        while True:
            # peers that began together must not all look around together
            await trio.sleep(min(pause, interval) * (0.75 + os.urandom(1)[0] / 512))
            self.server.store.expire(self.wall_us())
            if len(self.table) == 0:
                continue
            connected = self.network.connected()
            doubtful = self.table.doubtful(trio.current_time(), interval, connected.__contains__)
            await self.run(Check(doubtful, self.tuning.alpha))
            for look in self._survey.looks(trio.current_time, interval, lambda: os.urandom(32)):
                await self._look_up(look)
            pause = REFRESH_SECONDS


@asynccontextmanager
async def open_overlay(
    network: Network,
    server: KadServer,
    table: RoutingTable,
    tuning: Tuning,
    name: str,
    wall_us: Callable[[], int],
    *,
    serves: bool,
) -> AsyncIterator[Overlay]:
    """The overlay of `network`, for as long as the block lasts; a client (`serves` False) only asks."""
    async with trio.open_nursery() as nursery:
        overlay = Overlay(network, server, table, tuning, name, wall_us, nursery)
        if serves:
            network.handle(protocol(name, "kad"), overlay.answering.handle)
        network.on_connected(overlay.on_connected)
        network.on_disconnected(overlay.on_disconnected)
        nursery.start_soon(overlay.watch_arrivals)
        nursery.start_soon(overlay.settle)
        nursery.start_soon(overlay.refresh)
        nursery.start_soon(overlay.trim)
        try:
            yield overlay
        finally:
            nursery.cancel_scope.cancel()
