"""From a connected socket to a link: the randomness, the sockets and the memory that `securing` needs."""

from __future__ import annotations

import socket

import trio

from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport.addresses import Endpoint
from modelnet_p2p.node.transport.link import Link, Workbench, tune
from modelnet_p2p.node.transport.securing import HandshakeFailed, establish, new_static_key

__all__ = ["HandshakeFailed", "Upgrader", "dial"]

FAMILIES = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
READ_AT_ONCE = 4096  # bytes: a handshake has some hundred
SLACK = 32  # streams that the far side knows to be over and we do not yet


class _Raw:
    """The socket while the handshake runs."""

    def __init__(self, stream: trio.SocketStream, expect: PeerId | None, turn: trio.Lock) -> None:
        self._stream = stream
        self._expect = expect
        self._turn = turn

    async def read(self) -> bytes:
        try:
            data = await self._stream.receive_some(READ_AT_ONCE)
        except trio.BrokenResourceError as error:
            raise HandshakeFailed(self._expect, "the connection broke during the handshake") from error
        if not data:
            raise HandshakeFailed(self._expect, "the far side closed the connection during the handshake")
        async with self._turn:  # what comes now is a millisecond of work
            await trio.lowlevel.checkpoint()
        return bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise HandshakeFailed(self._expect, "the connection broke during the handshake") from error


class Upgrader:
    """Makes links out of sockets, for one network."""

    def __init__(self, key: KeyPair, max_streams: int) -> None:
        self._key = key
        self._static = new_static_key()
        self._bench = Workbench()
        self._max_streams = max_streams
        self._turn = trio.Lock()  # a crowd of strangers shakes hands one step at a time, between others' work

    async def watch(self) -> None:
        """Look after all links that were made here, for as long as the network lives."""
        await self._bench.watch()

    async def upgrade(self, stream: trio.SocketStream, expect: PeerId | None) -> Link:
        """`expect` is whom we dialled, None if they did. Raises HandshakeFailed.

        The caller bounds it in time, and closes the socket when it fails.
        """
        established = await establish(_Raw(stream, expect, self._turn), self._key, self._static, expect)
        sock = socket.socket(fileno=stream.socket.detach())
        try:
            tune(sock)
            return Link(
                sock,
                established,
                self._bench,
                initiator=expect is not None,
                max_inbound=self._max_streams + SLACK,
                max_outbound=self._max_streams,
            )
        except OSError as error:  # it has broken since the last message of the handshake
            sock.close()
            raise HandshakeFailed(expect, "the connection broke behind the handshake") from error


async def dial(endpoint: Endpoint) -> trio.SocketStream:
    """Connect; raises OSError. The caller's cancel scope is its deadline."""
    if family := FAMILIES.get(endpoint.kind):
        return await _dial_ip(family, endpoint.host, endpoint.port)
    try:
        return await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except UnicodeError as error:  # of the resolver, for names that no domain can have
        raise OSError("not a host name") from error


async def _dial_ip(family: int, host: str, port: int) -> trio.SocketStream:
    """One address: there is nothing to resolve, and nothing to race."""
    sock = trio.socket.socket(family)
    connected = False
    try:
        await sock.connect((host, port))
        connected = True
    finally:
        if not connected:
            sock.close()
    return trio.SocketStream(sock)
