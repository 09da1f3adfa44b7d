"""py-libp2p's yamux, made to tell a lost connection from ended and reset streams.

Stock, it marks every stream as ended and reset when the connection dies and throws away what they had
received. Here the connection is marked instead, and streams keep what arrived on them. To the network it
is what ours calls a link.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import cast

import trio
from libp2p.abc import ISecureConn
from libp2p.io.utils import read_exactly
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.transport.contract import ConnectionLost
from stock.wire_socket import WireClosed, WireSocket

HEADER = struct.Struct("!BBHII")  # version, type, flags, stream id, length
DATA, WINDOW_UPDATE, GO_AWAY = 0, 1, 3
FIN, RST = 4, 8
MAX_FRAME = 65519 - HEADER.size  # bytes of data: with its header one frame fills one Noise message
BODY_TIMEOUT = 30.0  # seconds from a frame's header to its last byte; 64 KiB pass in that at 2 KiB/s


class Muxer(Yamux):
    """One multiplexed connection; `start` runs until it is lost."""

    def __init__(self, secured: ISecureConn, wire: WireSocket, peer: PeerId, max_streams: int) -> None:
        super().__init__(secured, ID(bytes(peer)), is_initiator=wire.is_initiator)
        self.peer = peer
        self.wire = wire
        self.max_streams = max_streams
        self.lost = False
        self.on_broken: dict[int, Callable[[], None]] = {}  # of streams, by their number
        self.on_lost: Callable[[], None] | None = None  # called once, at the instant of the loss

    async def put(self, kind: int, flags: int, stream_id: int, length: int, data: bytes = b"") -> None:
        """Send one frame, whole and without a checkpoint; raises ConnectionLost."""
        try:
            await self.secured_conn.write(HEADER.pack(0, kind, flags, stream_id, length) + data)
        except WireClosed as error:
            self.lose()
            raise ConnectionLost(self.peer) from error

    async def _write_frame(self, data: bytes) -> None:
        # no lock and no checkpoint: the socket takes a write at once, so frames cannot interleave
        await self.secured_conn.write(data)

    async def _read_data_body(self, length: int) -> bytes:
        # TooSlowError is the one that stock yamux takes for the end of the connection; after any other
        # it would call the stream cleanly ended although its last frame is cut
        try:
            with trio.fail_after(BODY_TIMEOUT):
                body: bytes = await read_exactly(self.secured_conn, length)
                return body
        except WireClosed as error:
            raise trio.TooSlowError from error

    async def _cleanup_on_error(self) -> None:
        self.lose()

    def lose(self) -> None:
        """The connection is gone: wake everything that waits on it; idempotent."""
        if self.lost:
            return
        self.lost = True
        self.event_shutting_down.set()
        self.event_closed.set()
        self.new_stream_send_channel.close()
        for event in self.stream_events.values():
            event.set()
        self.wire.shut()
        broken, self.on_broken = self.on_broken, {}
        for callback in broken.values():
            callback()
        if self.on_lost is not None:
            self.on_lost()

    def _finalize_stream_locked(self, stream: YamuxStream, *, fully_closed: bool) -> None:
        # stock yamux passes here when a reset comes in, before it looks at another frame
        super()._finalize_stream_locked(stream, fully_closed=fully_closed)
        if fully_closed:
            callback = self.on_broken.pop(stream.stream_id, None)
            if stream.reset_received and callback is not None:
                callback()

    async def leave(self) -> None:
        """Say that we close, so that the far side need not guess; then lose the connection."""
        if not self.lost:
            try:
                await self.put(GO_AWAY, 0, 0, 0)
                await self.wire.flush()
            except ConnectionLost:
                pass  # then it knows already
        self.lose()

    async def accept(self) -> YamuxStream | None:
        """The next stream that the far side opens; None when the connection is gone."""
        try:
            stream = await self.accept_stream()
        except MuxedConnUnavailable:
            return None
        return cast(YamuxStream, stream)

    async def open(self) -> YamuxStream:
        """A new stream; raises ConnectionLost. Does not wait: its caller has counted the open ones."""
        with trio.CancelScope(shield=True):  # cancelled halfway it would leak one of yamux's 256 slots
            try:
                return await self.open_stream()
            except (MuxedStreamError, WireClosed) as error:
                self.lose()
                raise ConnectionLost(self.peer) from error

    async def forget(self, stream: YamuxStream, *, over: bool) -> None:
        """My side of a stream has ended; `over`: both have, drop all that is kept of it."""
        with trio.CancelScope(shield=True):  # only a lock of the same process is waited for
            await self._finalize_stream(stream, fully_closed=over)
