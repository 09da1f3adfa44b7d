"""One TCP socket for the stock stack, so shaped that a write is never cut in half.

What is written goes to the kernel at once, or behind what already waits, without any point at which
a task could be cancelled; a pump sends the rest. Waiting for room happens before a frame is made, in
`writable`. So a cancelled sender leaves whole frames or nothing behind, and needs no shield against a
far side that has stopped reading.
"""

from __future__ import annotations

import socket

import trio
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from multiaddr import Multiaddr

from modelnet_p2p.node.transport.addresses import tcp_address

LOW_BACKLOG = 256 * 1024  # bytes waiting here at which senders wait: some frames in front of the kernel's
HIGH_BACKLOG = 1024 * 1024  # ... at which we stop reading: it does not read what we answer
READ_AT_ONCE = 256 * 1024  # bytes of one receive: several full Noise messages
STALL = 20.0  # seconds without the kernel taking a byte that waits: the far side is gone or frozen
FLUSH = 0.2  # seconds that a closing socket may take to send what waits
KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds: a vanished host is
# noticed after about 35 s of silence, where the system's own default is two hours


class WireClosed(ConnectionClosedError):
    """The socket is closed, by either side."""


class WireSocket(IRawConnection):
    """A connected TCP socket. `pump` must run in a task from the moment that data flows freely.

    It has the methods that py-libp2p asks of a raw connection.
    """

    def __init__(self, stream: trio.SocketStream, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        try:
            peername = stream.socket.getpeername()
        except OSError:  # reset by the far side before we looked
            stream.socket.close()
            raise
        self.remote: tuple[str, int] = (str(peername[0]), int(peername[1]))
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        _keep_alive(self._socket)
        self._received = b""  # what one receive brought, handed out in pieces
        self._given = 0  # bytes of it that are handed out
        self._backlog = bytearray()
        self._waiting = trio.Event()  # set: the backlog is not empty, or the socket is closed
        self._room = trio.Event()  # replaced when the backlog has shrunk; wakes `writable` and `read`
        self.closed = False

    async def write(self, data: bytes) -> None:
        """Take all of `data`, without a checkpoint; raises WireClosed."""
        if self.closed:
            raise WireClosed("the connection is closed")
        if not self._backlog:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.shut()
                raise WireClosed(str(error)) from error
            if sent == len(data):
                return
            data = data[sent:]
        self._backlog += data
        self._waiting.set()

    async def writable(self) -> None:
        """Wait until little is waiting to be sent; always a checkpoint."""
        await trio.lowlevel.checkpoint()
        await self._backlog_below(LOW_BACKLOG)

    async def _backlog_below(self, limit: int) -> None:
        while len(self._backlog) >= limit and not self.closed:
            await self._room.wait()

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes, at least one; raises WireClosed at the end of the connection."""
        if self._given == len(self._received):
            await self._backlog_below(HIGH_BACKLOG)
            self._received, self._given = await self._receive(), 0
        end = len(self._received) if n is None else self._given + n
        piece = self._received[self._given : end]
        self._given += len(piece)
        return piece

    async def _receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self.closed:
                raise WireClosed("the connection is closed")
            try:
                data = self._socket.recv(READ_AT_ONCE)
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_readable(self._socket.fileno())
                except trio.ClosedResourceError as error:
                    raise WireClosed("the connection was closed") from error
                continue
            except OSError as error:
                self.shut()
                raise WireClosed(str(error)) from error
            if not data:
                raise WireClosed("the far side closed the connection")
            return data

    async def pump(self) -> None:
        """Send what waits, until the socket is closed or the far side takes nothing for `STALL`."""
        while not self.closed:
            await self._waiting.wait()
            if not self.closed and not await self._send_some():
                self.shut()

    async def flush(self) -> None:
        """Give the pump a last short chance to send what waits."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH):
            await self._backlog_below(1)

    async def _send_some(self) -> bool:
        """One send of what waits; False when it could not be done in time, or at all."""
        with trio.move_on_after(STALL) as scope:
            try:
                await trio.lowlevel.wait_writable(self._socket.fileno())
                with memoryview(self._backlog) as waiting:
                    sent = self._socket.send(waiting)
            except BlockingIOError:
                return True
            except (OSError, trio.ClosedResourceError):
                return False
            del self._backlog[:sent]
            if not self._backlog and not self.closed:
                self._waiting = trio.Event()
            self._wake_waiters()
        return not scope.cancelled_caught

    def _wake_waiters(self) -> None:
        self._room.set()
        self._room = trio.Event()

    async def close(self) -> None:  # as py-libp2p has it
        self.shut()

    def shut(self) -> None:
        """Close at once and wake whoever waits; idempotent."""
        if self.closed:
            return
        self.closed = True
        self._waiting.set()
        self._wake_waiters()
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket.fileno())
            self._socket.close()

    def get_remote_address(self) -> tuple[str, int]:
        return self.remote

    def get_transport_addresses(self) -> list[Multiaddr]:
        return [Multiaddr(tcp_address(*self.remote))]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS lacks some of them on older Pythons
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
