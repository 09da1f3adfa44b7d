"""A stranger with a key of his own: he shakes hands as he should, and then sends whatever frames he likes.

mallory = await intrude(bob, key)
await mallory.write(HEADER.pack(0, DATA, SYN, 1, 1 << 30))
assert (await mallory.frames())[-1].kind == GO_AWAY
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import trio

from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport.contract import Network
from modelnet_p2p.node.transport.securing import Established, establish, new_static_key
from modelnet_p2p.node.transport.wire.sealing import MAX_PLAIN, MAX_WIRE
from modelnet_p2p.node.transport.wire.yamux import DATA, HEADER, HEADER_BYTES

_open: list[trio.SocketStream] = []


class Frame(NamedTuple):
    kind: int
    flags: int
    id: int
    length: int
    body: bytes


class Intruder:
    """A peer that keeps the handshake's rules and no others: it says what frames go out, and when."""

    def __init__(self, stream: trio.SocketStream, established: Established) -> None:
        self.stream = stream
        self._sealer = established.sealer
        self._opener = established.opener
        self._plain = bytearray(established.early)
        _open.append(stream)

    async def write(self, plain: bytes) -> None:
        """Seal and send; it waits as long as the far side does not read."""
        out = bytearray(len(plain) + MAX_WIRE * (1 + len(plain) // MAX_PLAIN))
        end = 0
        for at in range(0, len(plain), MAX_PLAIN):
            end = self._sealer.seal_into(memoryview(plain)[at : at + MAX_PLAIN], memoryview(out), end)
        await self.stream.send_all(memoryview(out)[:end])

    async def frame(self) -> Frame | None:
        """The next frame that the far side sends; None at the end of the connection."""
        head = await self._take(HEADER_BYTES)
        if head is None:
            return None
        _, kind, flags, id, length = HEADER.unpack(head)
        body = await self._take(length) if kind == DATA else b""
        return None if body is None else Frame(kind, flags, id, length, body)

    async def frames(self) -> list[Frame]:
        """All that still come until the far side ends the connection."""
        found = []
        while (frame := await self.frame()) is not None:
            found.append(frame)
        return found

    async def _take(self, n: int) -> bytes | None:
        while len(self._plain) < n:
            try:
                data = await self.stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            room = memoryview(bytearray(MAX_WIRE + len(data)))
            start = self._opener.begin(room)
            room[start : start + len(data)] = data
            for plain in self._opener.open(room, start + len(data), memoryview(bytearray(MAX_PLAIN))):
                self._plain += plain
        taken = bytes(self._plain[:n])
        del self._plain[:n]
        return taken

    def vanish(self) -> None:
        """Close the socket without a word."""
        self.stream.socket.close()

    def reset(self) -> None:
        """Break the connection, so that the far side is told by an error."""
        self.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.vanish()


class _Raw:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        data = await self._stream.receive_some(4096)
        assert data, "the far side closed the connection during the handshake"
        return bytes(data)

    async def write(self, data: bytes) -> None:
        await self._stream.send_all(data)


def all_vanish() -> None:
    """Close the sockets of all that there ever were: for the end of a test."""
    while _open:
        _open.pop().socket.close()


def port_of(network: Network) -> int:
    return int(network.addrs[0].split("/")[4])


async def dial(port: int, peer: PeerId, me: KeyPair) -> Intruder:
    """A sealed connection to `peer` on this machine, and full control of it."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    return Intruder(stream, await establish(_Raw(stream), me, new_static_key(), peer))


async def intrude(network: Network, me: KeyPair) -> Intruder:
    return await dial(port_of(network), network.id, me)
