"""A whole network inside one process: for tests, and for simulations with virtual time.

`MemoryWorld` is the internet and plays fate: it kills and freezes peers and parts them from each other.
`MemoryNetwork` is one peer's view, by the same contract as the real one. It runs on trio alone, so a
`MockClock` drives it, and nothing but trio's scheduling is random in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport.addresses import ip_group, tcp_address, with_peer
from modelnet_p2p.node.transport.contract import Handler, Network, PeerCallback, Stream
from modelnet_p2p.node.transport.gate import Gate, Place
from modelnet_p2p.node.transport.memory_stream import MemoryStream, stream_pair
from modelnet_p2p.node.transport.ping import PING, answer_pings
from modelnet_p2p.node.transport.registry import AddressBook, Callbacks, Handlers, Target
from modelnet_p2p.tuning import TEST, Tuning

PORT = 4001


@dataclass(eq=False, slots=True)
class _Link:
    """A connection between two peers: their places at the gates, and the open streams."""

    ends: tuple[MemoryNetwork, MemoryNetwork]
    places: tuple[Place, Place]
    streams: list[MemoryStream] = field(default_factory=list)

    def far(self, me: MemoryNetwork) -> MemoryNetwork:
        return self.ends[1] if self.ends[0] is me else self.ends[0]

    def lose(self) -> None:
        for stream in self.streams:
            stream.lose()
        for place in self.places:
            place.leave()
        for end in self.ends:
            end.forget(self.far(end).id)


class MemoryWorld:
    """All peers of one process, and what may befall them."""

    def __init__(self) -> None:
        self._hosts: dict[str, MemoryNetwork] = {}  # who listens at an address
        self._peers: dict[PeerId, MemoryNetwork] = {}
        self._frozen: set[PeerId] = set()
        self._thawed = trio.Event()
        self._sides: dict[PeerId, int] = {}  # of a partition; who is in no group is on side -1
        self._opened = 0

    @asynccontextmanager
    async def open(
        self, key: KeyPair, *, tuning: Tuning = TEST, listen: bool = True, host: str | None = None
    ) -> AsyncIterator[MemoryNetwork]:
        """A new peer, at `host` or at a private address of its own; `listen=False` makes a client."""
        if key.id in self._peers:
            raise LocalError(Code.IN_USE, f"peer {key.id} is in this world already")
        self._opened += 1
        host = host or f"10.{self._opened >> 16 & 255}.{self._opened >> 8 & 255}.{self._opened & 255}"
        address = tcp_address(host, PORT)
        async with trio.open_nursery() as tasks:
            network = MemoryNetwork(self, key.id, tuning, (host, address if listen else None), tasks)
            self._peers[key.id] = network
            if listen:
                self._hosts[address] = network
            try:
                yield network
            finally:
                self._remove(network)

    def _remove(self, network: MemoryNetwork) -> None:
        network.die()
        self._hosts = {addr: other for addr, other in self._hosts.items() if other is not network}
        if self._peers.get(network.id) is network:
            del self._peers[network.id]

    # --- fate ----------------------------------------------------------------------------------

    def kill(self, peer: PeerId) -> None:
        """End a peer as a power cut would: its tasks stop, its connections are lost on the other side."""
        self._remove(self._peers[peer])

    def freeze(self, peer: PeerId) -> None:
        """Let a peer stand still: it stays connected, and nothing that it sends or receives moves."""
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        self._frozen.discard(peer)
        self._wake()

    def partition(self, *groups: Collection[PeerId]) -> None:
        """Part the groups from each other; peers in none of them form one more group."""
        self._sides = {peer: side for side, group in enumerate(groups) for peer in group}
        for network in list(self._peers.values()):
            network.lose_beyond(self._parted)
        self._wake()

    def heal(self) -> None:
        self._sides = {}

    def _wake(self) -> None:
        self._thawed.set()
        self._thawed = trio.Event()

    def _parted(self, one: PeerId, other: PeerId) -> bool:
        return self._sides.get(one, -1) != self._sides.get(other, -1)

    # --- for the networks ----------------------------------------------------------------------

    def frozen(self, *peers: PeerId) -> bool:
        return not self._frozen.isdisjoint(peers)

    async def awake(self, *peers: PeerId) -> None:
        """Wait until none of the peers is frozen."""
        while self.frozen(*peers):
            await self._thawed.wait()

    def find(self, me: PeerId, target: Target) -> MemoryNetwork | None:
        """Whom a dial reaches: the wanted peer, if it listens at one of the addresses."""
        for addr in target.addrs:
            network = self._hosts.get(addr)
            if network is not None and network.id == target.peer and not self._parted(me, target.peer):
                return network
        return None


class MemoryNetwork(Network):
    """Made by `MemoryWorld.open`."""

    def __init__(
        self,
        world: MemoryWorld,
        me: PeerId,
        tuning: Tuning,
        place: tuple[str, str | None],
        tasks: trio.Nursery,
    ) -> None:
        self.id = me
        self._world = world
        self._tuning = tuning
        self.host, self._address = place
        self._tasks = tasks
        self.gate = Gate(tuning.max_connections, tuning.max_connections_per_peer)
        self.handlers = Handlers()
        self._callbacks = Callbacks()
        self._book = AddressBook()
        self._links: dict[PeerId, _Link] = {}
        self._dead = False
        self._serving: set[trio.CancelScope] = set()
        self.handlers.add(PING, answer_pings)

    @property
    def addrs(self) -> tuple[str, ...]:
        return (with_peer(self._address, self.id),) if self._address else ()

    def handle(self, protocol: str, handler: Handler) -> None:
        self.handlers.add(protocol, handler)

    def on_connected(self, callback: PeerCallback) -> None:
        self._callbacks.connected.append(callback)

    def on_disconnected(self, callback: PeerCallback) -> None:
        self._callbacks.disconnected.append(callback)

    def connected(self) -> frozenset[PeerId]:
        return frozenset(self._links)

    def peer_addrs(self, peer: PeerId) -> tuple[str, ...]:
        return self._book.of(peer)

    def remote_group(self, peer: PeerId) -> str | None:
        link = self._links.get(peer)
        return ip_group(link.far(self).host) if link else None

    async def connect(self, peer: PeerId, addrs: Sequence[str] = ()) -> None:
        if peer == self.id:
            raise LocalError(Code.BAD_INPUT, "a peer does not connect to itself")
        target = Target.of(peer, addrs or self._book.of(peer))
        await trio.lowlevel.checkpoint()
        if peer in self._links:
            return
        with trio.move_on_after(self._tuning.dial_timeout):
            await self._world.awake(self.id, peer)
            if peer not in self._links:
                self._link(target)
            return
        raise self._error(
            Code.DEADLINE, peer, f"did not answer in time; tried {', '.join(target.addrs) or 'nothing'}"
        )

    def _link(self, target: Target) -> None:
        other = None if self._dead else self._world.find(self.id, target)
        if other is None:
            tried = ", ".join(target.addrs) or "nothing: no address of it is known"
            raise self._error(Code.UNREACHABLE, target.peer, f"is not reachable; tried {tried}")
        mine, theirs = self.gate.enter(inbound=False), other.gate.enter(inbound=True)
        if mine is None or theirs is None:
            for place in filter(None, (mine, theirs)):
                place.leave()
            raise self._error(Code.UNREACHABLE, target.peer, "or I have too many connections")
        mine.name(other.id)
        theirs.name(self.id)
        link = _Link((self, other), (mine, theirs))
        other.adopt(link, ())
        self.adopt(link, target.addrs)

    def adopt(self, link: _Link, dialled: Sequence[str]) -> None:
        far = link.far(self)
        self._links[far.id] = link
        self._book.learn(far.id, [*dialled, *filter(None, [far._address])])
        self._callbacks.tell_connected(far.id)

    def forget(self, peer: PeerId) -> None:
        if self._links.pop(peer, None):
            self._callbacks.tell_disconnected(peer)

    def lose_beyond(self, parted: Callable[[PeerId, PeerId], bool]) -> None:
        """Lose the connections to all peers that I am parted from."""
        for peer, link in list(self._links.items()):
            if parted(self.id, peer):
                link.lose()

    def die(self) -> None:
        """Lose every connection and stop serving, for ever."""
        self._dead = True
        self.lose_beyond(lambda _me, _peer: True)
        for scope in self._serving:
            scope.cancel()

    def idle(self, peer: PeerId) -> bool:
        link = self._links.get(peer)
        return link is None or all(stream.over or stream.at_rest for stream in link.streams)

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        if peer in self._links:
            self._links[peer].lose()

    async def protocols(self, peer: PeerId) -> frozenset[str]:
        link = self._connected_link(peer)
        with trio.move_on_after(self._tuning.dial_timeout):
            await self._world.awake(self.id, peer)
            await trio.lowlevel.checkpoint()
            if self._links.get(peer) is not link:
                raise self._error(Code.UNREACHABLE, peer, "is not connected any more")
            return link.far(self).handlers.protocols()
        raise self._error(Code.DEADLINE, peer, "did not identify itself in time")

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        link = self._connected_link(peer)
        far = link.far(self)
        if protocol not in far.handlers:
            await self.protocols(peer)  # it says so itself, or not in time
            raise self._error(Code.UNKNOWN_METHOD, peer, f"does not speak {protocol}")
        link.streams = [stream for stream in link.streams if not stream.over]
        most = self._tuning.max_streams_per_peer
        if sum(stream.peer == peer for stream in link.streams) >= most:
            raise self._error(Code.BUSY, peer, f"has {most} streams of mine open already")
        await trio.lowlevel.checkpoint()
        if self._links.get(peer) is not link:
            raise self._error(Code.UNREACHABLE, peer, "is not connected any more")

        async def awake() -> None:
            await self._world.awake(self.id, peer)

        mine, theirs = stream_pair(self.id, peer, protocol, awake)
        link.streams += (mine, theirs)
        far._tasks.start_soon(far._serve, theirs)
        return mine

    async def _serve(self, stream: MemoryStream) -> None:
        if self._dead:
            return
        with trio.CancelScope() as scope:
            self._serving.add(scope)
            await self._world.awake(self.id)
            await self.handlers.serve(stream)
        self._serving.discard(scope)

    def _connected_link(self, peer: PeerId) -> _Link:
        link = self._links.get(peer)
        if link is None:
            raise self._error(Code.UNREACHABLE, peer, "is not connected")
        return link

    def _error(self, code: Code, peer: PeerId, what: str) -> RemoteError:
        return RemoteError(code, f"peer {peer} {what}", peer=str(peer))
