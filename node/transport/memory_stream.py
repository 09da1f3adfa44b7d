"""Two ends of a byte stream inside one process, with the contract's three ends and a bounded window."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.transport.contract import ConnectionLost, Stream, StreamReset

WINDOW = 256 * 1024  # bytes on the way before the sender waits: yamux's first window


class _Pipe:
    """One direction."""

    __slots__ = ("_changed", "buffer", "ended", "lost", "on_broken", "reset")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = False  # the sender has finished
        self.reset = False  # the sender has given up on the stream
        self.lost = False  # the connection is gone
        self.on_broken: Callable[[], None] | None = None  # the receiver's, see `Stream`
        self._changed = trio.lowlevel.ParkingLot()

    async def wait(self) -> None:
        await self._changed.park()

    def wake(self) -> None:
        self._changed.unpark_all()
        if self.on_broken is not None and (self.ended or self.reset or self.lost):
            callback, self.on_broken = self.on_broken, None
            callback()


class MemoryStream(Stream):
    """Made in pairs by `stream_pair`. `awake` waits while either peer is frozen."""

    def __init__(
        self, peer: PeerId, protocol: str, pipes: tuple[_Pipe, _Pipe], awake: Callable[[], Awaitable[None]]
    ) -> None:
        self.peer = peer
        self.protocol = protocol
        self._in, self._out = pipes
        self._awake = awake
        self._gone = False
        self.at_rest = False  # kept in case it is needed
        self._sending = self._receiving = False

    def rest(self) -> None:
        self.at_rest = True

    @property
    def over(self) -> bool:
        """Whether nothing more can happen on this end."""
        both_ended = self._in.ended and self._out.ended and not self._in.buffer
        return self._gone or self._in.reset or self._in.lost or both_ended

    async def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sendable()
        self._sending = True
        settled = False
        try:
            for part in buffers:
                await self._send_part(memoryview(part).cast("B") if len(part) else memoryview(b""))
            settled = True
        except (ConnectionLost, StreamReset):
            settled = True
            raise
        finally:
            self._sending = False
            if not settled:
                await self.reset()

    def send_now(self, data: bytes) -> bool:
        """As into a kernel's buffer: who is frozen only sees it later."""
        if self._sending or len(self._out.buffer) + len(data) > WINDOW:
            return False
        self._check_sendable()
        self._out.buffer += data
        self._out.wake()
        return True

    async def _send_part(self, part: memoryview) -> None:
        while part:
            await trio.lowlevel.checkpoint()
            await self._awake()
            self._check_sendable()
            room = WINDOW - len(self._out.buffer)
            if room <= 0:
                await self._out.wait()
                continue
            self._out.buffer += part[:room]
            part = part[room:]
            self._out.wake()

    def _check_sendable(self) -> None:
        if self._gone or self._out.ended:
            raise trio.ClosedResourceError("this side of the stream has ended")
        if self._in.reset:
            raise StreamReset(self.peer, self.protocol)
        if self._in.lost:
            raise ConnectionLost(self.peer)

    async def receive_into(self, buffer: memoryview) -> int:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if not len(buffer):
            raise ValueError("an empty buffer cannot tell data from the end")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while True:
                await self._awake()
                if self._gone:
                    raise trio.ClosedResourceError("this side has reset the stream")
                if self._in.buffer:
                    return self._take(buffer)
                if self._in.ended:
                    return 0
                if self._in.reset:
                    raise StreamReset(self.peer, self.protocol)
                if self._in.lost:
                    raise ConnectionLost(self.peer)
                await self._in.wait()
        finally:
            self._receiving = False

    def _take(self, buffer: memoryview) -> int:
        arrived = self._in.buffer
        n = min(len(arrived), len(buffer))
        with memoryview(arrived) as view:
            buffer[:n] = view[:n]
        del arrived[:n]
        self._in.wake()
        return n

    def on_broken(self, callback: Callable[[], None] | None) -> None:
        self._in.on_broken = callback
        self._in.wake()

    async def finish(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._gone:
            self._out.ended = True
            self._out.wake()

    async def reset(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._in.on_broken = None
        self._out.reset = not self._in.lost  # over a lost connection nothing is told
        self._in.buffer.clear()
        self._in.wake()
        self._out.wake()

    def lose(self) -> None:
        """The connection is gone; what has arrived can still be received."""
        self._in.lost = True
        self._in.wake()
        self._out.wake()


def stream_pair(
    alice: PeerId, bob: PeerId, protocol: str, awake: Callable[[], Awaitable[None]]
) -> tuple[MemoryStream, MemoryStream]:
    """Both ends of a new stream: first the one in alice's hands, then the one in bob's."""
    there, back = _Pipe(), _Pipe()
    return (
        MemoryStream(bob, protocol, (back, there), awake),
        MemoryStream(alice, protocol, (there, back), awake),
    )
