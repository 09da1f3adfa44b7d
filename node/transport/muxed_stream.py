"""A yamux stream that keeps the contract: three ends told apart, cancelling harms nobody else.

The protocol is negotiated on it too. Where the far side is known to speak it, the proposal travels in
front of the first data and the answers are taken off when the first data comes back, so opening a
stream costs no round trip; the answering side holds its answers back likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from modelnet_p2p.node.transport import negotiation
from modelnet_p2p.node.transport.contract import ConnectionLost, Stream, StreamReset
from modelnet_p2p.node.transport.link import Link
from modelnet_p2p.node.transport.wire.flow import Flow

# What is sent at once, without waiting for it to leave: copying it costs less than a turn of the scheduler.
EAGER_BYTES = 16 * 1024
PIECE_BYTES = 256  # of memory that a waiting piece takes beside its own bytes
MAX_EAGER_BYTES = 64 * 1024  # of one stream, that wait for the far side's window
MAX_EAGER_IN_ALL = 512 * 1024  # of one connection: its far side may not read at all


class _Waiter:
    """The one task that waits for something on a stream; `on_abort`: at the instant that it is cancelled."""

    __slots__ = ("_on_abort", "_task")

    def __init__(self, on_abort: Callable[[], None] | None = None) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._on_abort = on_abort

    async def wait(self) -> None:
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        if self._on_abort is not None:
            self._on_abort()
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class MuxedStream(Stream):
    """See `Stream`."""

    def __init__(self, link: Link, flow: Flow) -> None:
        self.peer = link.peer
        self.protocol = ""
        self._link = link
        self._flow = flow
        self._preface = b""  # negotiation that goes out in front of the first data
        self._answers: bytearray | None = None  # negotiation that must come in before the first data
        self._sending = self._receiving = False
        self._gone = False  # I have given up on it
        self._reader = _Waiter(self._take_target_back)
        self._sender = _Waiter()
        self._broken: Callable[[], None] | None = None
        flow.on_news = self._on_news
        flow.on_room = self._sender.wake

    # --- news from the link --------------------------------------------------------------------

    def _on_news(self) -> None:
        self._reader.wake()
        if self._broken is not None and (self._flow.ended or self._flow.broken or self._link.lost):
            callback, self._broken = self._broken, None
            callback()

    def on_broken(self, callback: Callable[[], None] | None) -> None:
        self._broken = callback
        if callback is not None:
            self._on_news()

    # --- sending -------------------------------------------------------------------------------

    async def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_sendable()
        size = sum(map(len, buffers))  # of views of bytes: of others it is too small, and they are not eager
        if self._may_be_eager(size) and all(map(_small, buffers)):
            self._send_eagerly(b"".join((self._take_preface(), *buffers)), size)
            return
        flow, link = self._flow, self._link
        session = link.session
        self._sending = True
        sent = False
        try:
            parts = [memoryview(part).cast("B") for part in buffers if len(part)]
            session.send(flow, (memoryview(self._take_preface()), *parts))
            link.kick()
            while flow.queued and not link.lost:
                await self._sender.wait()
            sent = not flow.queued
            self._check_sendable()
        finally:
            if not (sent or flow.broken or link.lost):  # cancelled: nobody can tell how much went out
                await self.reset()
            self._sending = False

    def send_now(self, data: bytes) -> bool:
        if self._sending or not self._may_be_eager(len(data)):
            return False
        self._check_sendable()
        self._send_eagerly(self._take_preface() + data, len(data))
        return True

    def _may_be_eager(self, size: int) -> bool:
        """Whether so much may be copied, to be sent when there is room for it."""
        return (
            size <= EAGER_BYTES
            and self._flow.copied <= MAX_EAGER_BYTES - size
            and self._link.session.copied <= MAX_EAGER_IN_ALL
        )

    def _send_eagerly(self, data: bytes, size: int) -> None:
        self._link.session.send(self._flow, (data,), size + PIECE_BYTES)
        self._link.kick()

    def _check_sendable(self) -> None:
        if self._gone or self._flow.finished:
            raise trio.ClosedResourceError("this side of the stream has ended")
        if self._flow.broken:
            raise StreamReset(self.peer, self.protocol)
        if self._link.lost:
            raise ConnectionLost(self.peer)

    def _take_preface(self) -> bytes:
        preface, self._preface = self._preface, b""
        return preface

    def _flush_preface(self) -> None:
        if self._preface and not (self._gone or self._flow.finished or self._flow.broken or self._link.lost):
            self._link.session.send(self._flow, (self._take_preface(),))
            self._link.kick()

    async def finish(self) -> None:
        if not (self._gone or self._flow.finished):
            self._flush_preface()
            self._link.session.finish(self._flow)
            self._link.kick()

    # --- receiving -----------------------------------------------------------------------------

    async def receive_into(self, buffer: memoryview) -> int:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if not len(buffer):
            raise ValueError("an empty buffer cannot tell data from the end")
        if buffer.readonly or buffer.format != "B" or not buffer.c_contiguous:
            raise ValueError("a buffer to receive into is a row of bytes that can be written")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._preface:
                self._flush_preface()  # the far side answers only what it has been asked
            if self._answers is not None:
                await self._receive_answers()
            return await self._receive(buffer)
        finally:
            self._receiving = False

    def _take_target_back(self) -> None:
        """The reader is cancelled but has not run yet: what arrives meanwhile is for the next one."""
        self._flow.target = None

    async def _receive(self, buffer: memoryview) -> int:
        flow, link = self._flow, self._link
        while True:
            if self._gone:
                raise trio.ClosedResourceError("this side has reset the stream")
            if flow.held:
                n = link.session.take(flow, buffer, trio.current_time())
                link.kick()
                return n
            if flow.ended:
                return 0
            if flow.broken:
                raise StreamReset(self.peer, self.protocol)
            if link.lost:
                raise ConnectionLost(self.peer)
            flow.target, flow.filled = buffer, 0
            try:
                await self._reader.wait()
            finally:
                flow.target = None
            if flow.filled and not self._gone:
                return flow.filled

    # --- ending --------------------------------------------------------------------------------

    async def reset(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._broken = None
        # buffers of an unfinished `send` are their owner's again; what was taken before goes out
        self._link.session.reset(self._flow, abruptly=self._sending)
        self._link.kick()
        self._reader.wake()
        self._sender.wake()

    # --- negotiation ---------------------------------------------------------------------------

    def propose(self, protocol: str) -> None:
        """The opener's part: send the proposal with the first data, expect the answers before any."""
        self.protocol = protocol
        self._preface = negotiation.proposal(protocol)
        self._answers = bytearray()

    async def answered(self) -> None:
        """Send the proposal now and wait for the answers; raises what `receive_into` would."""
        self._flush_preface()
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
            if not self._flow.held:  # it waits for an answer before it goes on
                self._flush_preface()
            proposed = bytearray()
            await self._fill(proposed, 1)
            [wanted] = negotiation.texts(proposed)
            if offered(wanted):
                self.protocol = wanted
                self._preface += negotiation.message(wanted)
                if not self._flow.held:
                    self._flush_preface()
                return wanted
            self._preface += negotiation.message(negotiation.NOT_AVAILABLE)
            self._flush_preface()
        raise negotiation.BadNegotiation(self.peer, "asked for nothing that is spoken here")


def _small(part: bytes | memoryview) -> bool:
    return isinstance(part, bytes) or part.nbytes <= EAGER_BYTES
