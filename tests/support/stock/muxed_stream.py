"""A stream of stock yamux that keeps the contract: three ends told apart, cancelling harms nobody else.

The protocol is negotiated on it too, with the first data, as on streams of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from modelnet_p2p.node.transport import negotiation
from modelnet_p2p.node.transport.contract import ConnectionLost, Stream, StreamReset
from stock.muxer import DATA, FIN, MAX_FRAME, RST, WINDOW_UPDATE, Muxer

WINDOW_POLL = 0.005  # seconds between looks at a full window: stock yamux tells nobody when it opens


class MuxedStream(Stream):
    """See `Stream`; `on_over` is called once, when both sides have ended or one has given up."""

    def __init__(self, muxer: Muxer, raw: YamuxStream, on_over: Callable[[], None]) -> None:
        self.peer = muxer.peer
        self.protocol = ""
        self._muxer = muxer
        self._raw = raw
        self._on_over = on_over
        # our own hold on the buffer: yamux drops its entry when the stream or the connection ends
        self._buffer: bytearray = muxer.stream_buffers.get(raw.stream_id, bytearray())
        self._uncredited = 0  # bytes read of which the far side's window has not been told
        self._preface = b""  # negotiation that goes out in front of the first data
        self._answers: bytearray | None = None  # negotiation that must come in before the first data
        self._sending = self._receiving = False
        self._finished = False  # my side has ended
        self._gone = False  # I have given up on it
        self._over = False

    # --- sending -------------------------------------------------------------------------------

    async def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sendable()
        self._sending = True
        settled = False  # all is out, or nothing more can go out
        try:
            await self._send_all(buffers)
            settled = True
        except (ConnectionLost, StreamReset):
            settled = True
            raise
        finally:
            self._sending = False
            if not settled:  # cancelled: nobody can tell how much went out
                await self.reset()

    def _check_sendable(self) -> None:
        if self._gone or self._finished:
            raise trio.ClosedResourceError("this side of the stream has ended")
        if self._raw.reset_received:
            raise StreamReset(self.peer, self.protocol)
        if self._muxer.lost:
            raise ConnectionLost(self.peer)

    async def _send_all(self, buffers: Sequence[bytes | memoryview]) -> None:
        parts = [memoryview(part).cast("B") for part in (self._take_preface(), *buffers) if len(part)]
        parts.reverse()  # the next one is the last: popping is cheap there
        while parts:
            await self._muxer.wire.writable()
            self._check_sendable()
            room = min(self._raw.send_window, MAX_FRAME)
            if room <= 0:
                await trio.sleep(WINDOW_POLL)
                continue
            frame = _take(parts, room)
            self._raw.send_window -= len(frame)
            await self._muxer.put(DATA, 0, self._raw.stream_id, len(frame), frame)

    def _take_preface(self) -> bytes:
        preface, self._preface = self._preface, b""
        return preface

    async def finish(self) -> None:
        if self._finished or self._gone:
            return
        raw = self._raw
        try:
            await self._flush_preface()
            self._finished = True
            if not (self._muxer.lost or raw.reset_received):
                await self._muxer.put(WINDOW_UPDATE, FIN, raw.stream_id, 0)
        except ConnectionLost:
            self._finished = True  # whoever receives is told
        raw.send_closed = True
        raw.closed = raw.recv_closed
        await self._muxer.forget(raw, over=raw.closed)
        self._settle()

    # --- receiving -----------------------------------------------------------------------------

    async def receive_into(self, buffer: memoryview) -> int:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if not len(buffer):
            raise ValueError("an empty buffer cannot tell data from the end")
        self._receiving = True
        try:
            await self._flush_preface()  # the far side answers only what it has been asked
            if self._answers is not None:
                await self._receive_answers()
            return await self._receive(buffer)
        finally:
            self._receiving = False

    async def _flush_preface(self) -> None:
        preface = self._take_preface()
        if preface and not (self._gone or self._finished or self._raw.reset_received or self._muxer.lost):
            self._raw.send_window -= len(preface)  # a fresh stream has 256 KiB
            await self._muxer.put(DATA, 0, self._raw.stream_id, len(preface), preface)

    async def _receive(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        raw, muxer = self._raw, self._muxer
        while not self._buffer:
            if self._gone:
                raise trio.ClosedResourceError("this side has reset the stream")
            if raw.recv_closed:
                self._settle()
                return 0
            if raw.reset_received or raw.closed:
                self._mark_over()
                raise StreamReset(self.peer, self.protocol)
            if muxer.lost:
                self._mark_over()
                raise ConnectionLost(self.peer)
            await self._news()
        n = min(len(self._buffer), len(buffer))
        with memoryview(self._buffer) as arrived:
            buffer[:n] = arrived[:n]
        del self._buffer[:n]
        await self._credit(n)
        return n

    async def _news(self) -> None:
        """Wait until yamux has touched this stream since we last looked."""
        events = self._muxer.stream_events
        event = events.get(self._raw.stream_id)
        if event is None:  # dropped with an end that the flags do not tell: no more will come
            self._raw.reset_received = True
            return
        await event.wait()
        if events.get(self._raw.stream_id) is event and not self._muxer.lost:
            events[self._raw.stream_id] = trio.Event()

    async def _credit(self, n: int) -> None:
        """Widen the far side's window again, in large steps: a frame for each small read would cost more."""
        self._uncredited += n
        raw = self._raw
        if self._uncredited < raw.target_recv_window // 2 or raw.recv_closed or self._muxer.lost:
            return
        n, self._uncredited = self._uncredited, 0
        with trio.CancelScope(shield=True):  # the bytes are delivered; only a lock is waited for
            await raw._auto_tune_and_send_window_update(bytes_read=n)

    # --- ending --------------------------------------------------------------------------------

    def on_broken(self, callback: Callable[[], None] | None) -> None:
        # an end that comes later is told nobody: stock yamux only notes it
        watched, raw = self._muxer.on_broken, self._raw
        if callback is None:
            watched.pop(raw.stream_id, None)
        elif self._muxer.lost or ((raw.recv_closed or raw.reset_received) and not self._gone):
            callback()
        else:
            watched[raw.stream_id] = callback

    async def reset(self) -> None:
        if self._gone:
            return
        self._gone = True
        raw, muxer = self._raw, self._muxer
        muxer.on_broken.pop(raw.stream_id, None)
        if not (self._over or muxer.lost or raw.closed or raw.reset_received):
            try:
                await muxer.put(WINDOW_UPDATE, RST, raw.stream_id, 0)
            except ConnectionLost:
                pass
        self._buffer.clear()
        raw.closed = raw.send_closed = True
        event = muxer.stream_events.get(raw.stream_id)
        if event is not None:
            event.set()
        await muxer.forget(raw, over=True)
        self._mark_over()

    def _settle(self) -> None:
        if self._finished and self._raw.recv_closed and not self._buffer:
            self._mark_over()

    def _mark_over(self) -> None:
        if not self._over:
            self._over = True
            self._on_over()

    # --- negotiation ---------------------------------------------------------------------------

    def propose(self, protocol: str) -> None:
        """The opener's part: send the proposal with the first data, expect the answers before any."""
        self.protocol = protocol
        self._preface = negotiation.proposal(protocol)
        self._answers = bytearray()

    async def answered(self) -> None:
        """Send the proposal now and wait for the answers; raises what `receive_into` would."""
        await self._flush_preface()
        await self._receive_answers()

    async def _receive_answers(self) -> None:
        answers = self._answers
        if answers is None:
            return
        await self._fill(answers, 2)
        self._answers = None
        negotiation.check_answers(answers, self.protocol, self.peer)

    async def _fill(self, into: bytearray, messages: int) -> None:
        while need := negotiation.missing(into, messages):
            piece = bytearray(need)
            n = await self._receive(memoryview(piece))
            if n == 0:
                raise negotiation.BadNegotiation(self.peer, "it ended the stream")
            into += piece[:n]

    async def choose(self, offered: Callable[[str], bool]) -> str:
        """The answering side's part: the first proposal that is `offered`. Raises BadNegotiation.

        The acceptance waits for our first data if the far side has sent on without waiting for it.
        """
        header = bytearray()
        await self._fill(header, 1)
        if negotiation.texts(header) != [negotiation.HEADER]:
            raise negotiation.BadNegotiation(self.peer, "not with multistream 1.0")
        self._preface = negotiation.message(negotiation.HEADER)
        for _ in range(negotiation.MAX_PROPOSALS):
            if not self._buffer:  # it waits for an answer before it goes on
                await self._flush_preface()
            proposed = bytearray()
            await self._fill(proposed, 1)
            [wanted] = negotiation.texts(proposed)
            if offered(wanted):
                self.protocol = wanted
                self._preface += negotiation.message(wanted)
                if not self._buffer:
                    await self._flush_preface()
                return wanted
            self._preface += negotiation.message(negotiation.NOT_AVAILABLE)
            await self._flush_preface()
        raise negotiation.BadNegotiation(self.peer, "asked for nothing that is spoken here")


def _take(parts: list[memoryview], room: int) -> bytes:
    """Up to `room` bytes off the reversed list of parts, as one piece."""
    if len(parts) == 1 and len(parts[0]) <= room:
        return parts.pop().tobytes()
    taken: list[memoryview] = []
    while parts and room:
        part = parts.pop()
        taken.append(part[:room])
        if len(part) > room:
            parts.append(part[room:])
        room -= len(taken[-1])
    return b"".join(taken)
