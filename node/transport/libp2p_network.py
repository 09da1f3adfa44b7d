"""The network on libp2p's wire: TCP, Noise, yamux, multistream-select, identify, ping.

Everything that a stranger can make fail runs in a task of its own, whose failure ends that stream or
that connection and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.names import check_network
from modelnet_p2p.node.transport import identify
from modelnet_p2p.node.transport.addresses import ip_group, tcp_address, with_peer
from modelnet_p2p.node.transport.connection import Connection
from modelnet_p2p.node.transport.contract import Handler, Network, PeerCallback, Stream
from modelnet_p2p.node.transport.dialing import reach
from modelnet_p2p.node.transport.gate import Gate, Place
from modelnet_p2p.node.transport.identify import Told
from modelnet_p2p.node.transport.link import Link
from modelnet_p2p.node.transport.listening import listen_on, reachable_addrs
from modelnet_p2p.node.transport.muxed_stream import MuxedStream
from modelnet_p2p.node.transport.ping import PING, answer_pings
from modelnet_p2p.node.transport.registry import AddressBook, Callbacks, Handlers, Target
from modelnet_p2p.node.transport.upgrade import Upgrader
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stack:
    """What makes a socket a connection with streams: ours. Tests put other implementations in its place."""

    upgrader: Callable[[KeyPair, int], Upgrader] = Upgrader
    connection: Callable[[Link, Place, str | None, Callable[[Connection], None]], Connection] = Connection


OURS = Stack()


@dataclass(slots=True)
class _Dial:
    """A dial in progress, shared by all who want the peer."""

    addrs: frozenset[str]
    done: trio.Event = field(default_factory=trio.Event)
    error: RemoteError | None = None


class Libp2pNetwork(Network):
    """Made by `open_libp2p`."""

    def __init__(
        self,
        key: KeyPair,
        tuning: Tuning,
        listeners: Sequence[trio.SocketListener],
        tasks: trio.Nursery,
        stack: Stack = OURS,
    ) -> None:
        self.id = key.id
        self._listeners = listeners
        self._addrs = reachable_addrs(listeners)  # without /p2p/…
        self._tuning = tuning
        self._tasks = tasks
        self._upgrader = stack.upgrader(key, tuning.max_streams_per_peer)
        self._connection_of = stack.connection
        self._gate = Gate(tuning.max_connections, tuning.max_connections_per_peer)
        self._handlers = Handlers()
        self._callbacks = Callbacks()
        self._book = AddressBook()
        self._connections: dict[PeerId, list[Connection]] = {}
        self._dials: dict[PeerId, _Dial] = {}
        self._push_due = False
        self._handlers.add(PING, answer_pings)
        self._handlers.add(identify.IDENTIFY, self._on_identify)
        self._handlers.add(identify.PUSH, self._on_push)

    # --- the contract --------------------------------------------------------------------------

    @property
    def addrs(self) -> tuple[str, ...]:
        return tuple(with_peer(addr, self.id) for addr in self._addrs)

    def handle(self, protocol: str, handler: Handler) -> None:
        self._handlers.add(protocol, handler)
        self._push_soon()

    def renew_addrs(self) -> None:
        addrs = reachable_addrs(self._listeners)
        if addrs != self._addrs:
            self._addrs = addrs
            self._push_soon()

    def _push_soon(self) -> None:
        if self._connections and not self._push_due:
            self._push_due = True
            self._tasks.start_soon(self._push_all)

    def on_connected(self, callback: PeerCallback) -> None:
        self._callbacks.connected.append(callback)

    def on_disconnected(self, callback: PeerCallback) -> None:
        self._callbacks.disconnected.append(callback)

    def connected(self) -> frozenset[PeerId]:
        return frozenset(self._connections)

    def peer_addrs(self, peer: PeerId) -> tuple[str, ...]:
        return self._book.of(peer)

    def remote_group(self, peer: PeerId) -> str | None:
        connections = self._connections.get(peer)
        return ip_group(connections[0].remote[0]) if connections else None

    async def connect(self, peer: PeerId, addrs: Sequence[str] = ()) -> None:
        if peer == self.id:
            raise LocalError(Code.BAD_INPUT, "a peer does not connect to itself")
        target = Target.of(peer, addrs or self._book.of(peer))
        while peer not in self._connections:
            dial = self._dials.get(peer)
            if dial is None:
                dial = self._dials[peer] = _Dial(frozenset(target.addrs))
                self._tasks.start_soon(self._run_dial, target, dial)
            await dial.done.wait()
            if dial.error is None:
                break
            if dial.addrs.issuperset(target.addrs):
                raise _again(dial.error)
        await trio.lowlevel.checkpoint()

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        connection = self._connection(peer)
        certain = connection.told is not None and protocol in connection.told.protocols
        return await connection.open_stream(protocol, certain=certain, timeout=self._tuning.dial_timeout)

    def idle(self, peer: PeerId) -> bool:
        return all(connection.idle for connection in self._connections.get(peer, ()))

    async def disconnect(self, peer: PeerId) -> None:
        for connection in list(self._connections.get(peer, ())):
            await connection.leave()

    async def protocols(self, peer: PeerId) -> frozenset[str]:
        connection = self._connection(peer)
        with trio.move_on_after(self._tuning.dial_timeout):
            await connection.identified.wait()
            if connection.told is not None:
                return connection.told.protocols
            raise RemoteError(Code.UNREACHABLE, f"peer {peer} did not identify itself", peer=str(peer))
        raise RemoteError(Code.DEADLINE, f"peer {peer} did not identify itself in time", peer=str(peer))

    def _connection(self, peer: PeerId) -> Connection:
        for connection in self._connections.get(peer, ()):
            if not connection.lost:
                return connection
        raise RemoteError(Code.UNREACHABLE, f"not connected to peer {peer}", peer=str(peer))

    # --- connections come and go ---------------------------------------------------------------

    async def _run_dial(self, target: Target, dial: _Dial) -> None:
        place = self._gate.enter(inbound=False)
        try:
            if place is None:
                raise RemoteError(
                    Code.BUSY, f"{self._gate.taken} connections are open already", peer=str(target.peer)
                )
            reached = await reach(target, self._upgrader, self._tuning.dial_timeout)
            self._adopt(reached.link, place, reached.addr)
            place = None
        except RemoteError as error:
            dial.error = error
        finally:
            if place is not None:
                place.leave()
            del self._dials[target.peer]
            dial.done.set()

    async def welcome(self, stream: trio.SocketStream) -> None:
        """One accepted socket; it lives on in a task of its own once its peer is proved."""
        place = self._gate.enter(inbound=True)
        adopted = False
        try:
            if place is not None:
                with trio.move_on_after(self._tuning.dial_timeout):
                    self._adopt(await self._upgrader.upgrade(stream, None), place, None)
                    adopted = True
        except RemoteError as error:
            log.debug("inbound-refused cause=%s", error)
        finally:
            if not adopted:
                if stream.socket.fileno() >= 0:
                    stream.socket.close()
                if place is not None:
                    place.leave()

    def _adopt(self, link: Link, place: Place, dialled: str | None) -> None:
        peer = link.peer
        if peer == self.id or not place.name(peer):
            link.lose()
            why = "it is myself" if peer == self.id else "it has too many connections already"
            raise RemoteError(Code.BUSY, f"no connection with peer {peer}: {why}", peer=str(peer))
        connection = self._connection_of(link, place, dialled, self._drop)
        others = self._connections.setdefault(peer, [])
        others.append(connection)
        self._book.learn(peer, [dialled] if dialled else [])
        self._tasks.start_soon(self._run_connection, connection)
        self._tasks.start_soon(self._identify, connection)
        log.debug("connected peer=%s remote=%s:%d dialled=%s", peer.short, *connection.remote, bool(dialled))
        if len(others) == 1:
            self._callbacks.tell_connected(peer)

    async def _run_connection(self, connection: Connection) -> None:
        await connection.run(self._serve, self._tasks)

    def _drop(self, connection: Connection) -> None:
        others = self._connections[connection.peer]
        others.remove(connection)
        if not others:
            del self._connections[connection.peer]
            log.debug("disconnected peer=%s", connection.peer.short)
            self._callbacks.tell_disconnected(connection.peer)

    async def watch(self) -> None:
        """Give up connections whose far side is no longer there; for as long as the network lives."""
        await self._upgrader.watch()

    async def leave_all(self) -> None:
        """Close every connection with a word; for the way out."""
        with trio.CancelScope(shield=True):  # each bounds itself in time
            async with trio.open_nursery() as nursery:
                for connections in self._connections.values():
                    for connection in connections:
                        nursery.start_soon(connection.leave)

    # --- streams that others open --------------------------------------------------------------

    async def _serve(self, connection: Connection, stream: MuxedStream) -> None:
        chosen = False
        try:
            with trio.move_on_after(self._tuning.dial_timeout):
                await stream.choose(self._handlers.__contains__)
                chosen = True
        except RemoteError as error:
            log.debug("stream-refused peer=%s cause=%s", connection.peer.short, error)
        finally:
            if not chosen:
                await stream.reset()
        if chosen:
            await self._handlers.serve(stream)

    # --- identify ------------------------------------------------------------------------------

    def _identity(self, peer: PeerId) -> bytes:
        remote = self._connection(peer).remote
        return identify.encode(self.id, self._addrs, self._handlers.protocols(), tcp_address(*remote))

    async def _on_identify(self, stream: Stream) -> None:
        await stream.send([self._identity(stream.peer)])

    async def _on_push(self, stream: Stream) -> None:
        with trio.move_on_after(self._tuning.dial_timeout):
            told = await identify.receive(stream)
            for connection in self._connections.get(stream.peer, ()):
                self._learn(connection, told)

    async def _identify(self, connection: Connection) -> None:
        timeout = self._tuning.dial_timeout
        try:
            with trio.move_on_after(timeout):
                stream = await connection.open_stream(identify.IDENTIFY, certain=True, timeout=timeout)
                async with stream:
                    self._learn(connection, await identify.receive(stream))
                    await stream.finish()
                    await stream.receive_into(memoryview(bytearray(1)))  # its end: to a reset it is a failure
        except RemoteError as error:
            log.debug("identify-failed peer=%s cause=%s", connection.peer.short, error)
        finally:
            connection.identified.set()

    def _learn(self, connection: Connection, told: Told) -> None:
        connection.told = told
        connection.identified.set()
        self._book.learn(connection.peer, [*filter(None, [connection.dialled]), *told.addrs])

    async def _push_all(self) -> None:
        """Tell everybody what I speak and where I am; handlers added in the same breath go out together."""
        await trio.lowlevel.checkpoint()
        self._push_due = False
        async with trio.open_nursery() as nursery:
            for connections in self._connections.values():
                nursery.start_soon(self._push, connections[0])

    async def _push(self, connection: Connection) -> None:
        timeout = self._tuning.dial_timeout
        try:
            with trio.move_on_after(timeout):
                stream = await connection.open_stream(identify.PUSH, certain=False, timeout=timeout)
                async with stream:
                    await stream.send([self._identity(connection.peer)])
                    await stream.finish()
                    await stream.receive_into(memoryview(bytearray(1)))
        except RemoteError as error:
            log.debug("push-failed peer=%s cause=%s", connection.peer.short, error)


def _again(error: RemoteError) -> RemoteError:
    """The same error once more: one exception cannot be raised by several tasks at once."""
    return RemoteError(error.code, error.message, hint=error.hint, retryable=error.retryable, peer=error.peer)


@asynccontextmanager
async def open_libp2p(
    key: KeyPair, *, listen: Sequence[str] = (), tuning: Tuning, network: str, stack: Stack = OURS
) -> AsyncIterator[Libp2pNetwork]:
    """My place in the libp2p network; without addresses to listen on I am a client.

    `network` is only checked here: its name lies in the ids of the protocols that are handled. Raises
    LocalError: in-use for a busy port, bad-input for an address that cannot be listened on.
    """
    check_network(network)
    listeners = await listen_on(listen)
    try:
        async with trio.open_nursery() as tasks:
            mine = Libp2pNetwork(key, tuning, listeners, tasks, stack)
            tasks.start_soon(mine.watch)
            if listeners:
                tasks.start_soon(_accept, listeners, mine, tasks)
            try:
                yield mine
            finally:
                await mine.leave_all()
                tasks.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()


async def _accept(listeners: list[trio.SocketListener], network: Libp2pNetwork, tasks: trio.Nursery) -> None:
    await trio.serve_listeners(network.welcome, listeners, handler_nursery=tasks)
