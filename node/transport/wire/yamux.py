"""One yamux connection: frames in, frames out, streams told apart. No socket, no clock, no task.

The far side is held to the protocol: it may not send more than its windows allow, may not open more streams
than are let in, and may not break a frame's form; a `Violation` carries the code that it is told before the
connection closes. What goes out is taken in turns, one frame of each stream that has something, so that a
large tensor never holds up a small call by more than a frame.

    session.receive(plain, now)                    # one opened message; then look at `session.opened`
    while (n := session.fill(scratch)) ...: seal and send scratch[:n]
    session.tell()                                 # wakes the owners of the streams that these steps touched

Source: https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from enum import IntEnum

from modelnet_p2p.node.transport.wire.flow import Flow
from modelnet_p2p.node.transport.wire.sealing import MAX_PLAIN
from modelnet_p2p.node.transport.wire.windows import (
    FIRST_WINDOW,
    MODEST_BYTES,
    RoundTrips,
    WindowPool,
    grown,
)

HEADER = struct.Struct("!BBHII")  # version, type, flags, stream id, length
HEADER_BYTES = HEADER.size
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
MAX_LENGTH = (1 << 32) - 1
MAX_ID = (1 << 32) - 1
MAX_BODY = MAX_PLAIN - HEADER_BYTES  # of our data frames: header and body fill one sealed message
MAX_CONTROL = 4096  # frames of ours that wait: the far side makes us answer and does not read the answers


class Ending(IntEnum):
    """Why a connection ends, as a go-away frame says it."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class Violation(ValueError):
    """The far side broke the protocol; it is told `ending` and the connection closes."""

    ending = Ending.PROTOCOL_ERROR


class TooManyStreams(Exception):
    """We have as many streams open as we allow ourselves."""


class Session:
    """One end of a connection. Times are monotonic seconds."""

    def __init__(
        self, *, initiator: bool, pool: WindowPool, now: float, max_inbound: int, max_outbound: int
    ) -> None:
        self.opened: deque[Flow] = deque()  # streams of the far side's that nobody has looked at yet
        self.flows: dict[int, Flow] = {}
        self.inbound = 0  # open streams of the far side's
        self.outbound = 0  # ... of ours
        self.frames = 0  # received so far, complete ones
        self.resets = 0  # of streams that the far side had opened itself, before we answered anything
        self.round_trips = RoundTrips()
        self.gone_away: int | None = None  # the far side takes no new streams, for this reason
        self.held = 0  # bytes that arrived and lie unread
        self.copied = 0  # memory of ours in copies that wait to be sent
        self._pool = pool
        self.max_inbound = max_inbound
        self._max_outbound = max_outbound
        self._grown = 0  # bytes by which windows of ours are wider than the first
        self._next_id = 1 if initiator else 2
        self._their_parity = 0 if initiator else 1
        self._now = now
        self._closing = False
        self._control: deque[bytes] = deque()
        self._round: deque[Flow] = deque()  # those that have something to send and a window for it
        self._touched: dict[Flow, None] = {}  # whose owners should look for what they may receive
        self._drained: dict[Flow, None] = {}  # ... for whether they may send
        # what late data of streams that we gave up may still come to: the credit they had then
        self._owed = 0
        # the frame that is coming in
        self._head = b""
        self._flow: Flow | None = None  # None while a body is thrown away
        self._left = 0  # bytes of its body
        self._flags = 0
        self._ping = 0
        self._pinged: float | None = None

    # --- receiving -----------------------------------------------------------------------------

    @property
    def inside(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return bool(self._left or self._head)

    @property
    def flooded(self) -> bool:
        """Whether the far side should not be read until our frames to it have gone out."""
        return len(self._control) > MAX_CONTROL

    def receive(self, data: memoryview, now: float) -> None:
        """Take in what arrived; raises Violation."""
        self._now = now
        at, end = 0, len(data)
        while at < end:
            if self._left:
                n = min(self._left, end - at)
                self._on_body(data[at : at + n])
                at += n
            elif not self._head and end - at >= HEADER_BYTES:
                self._on_header(HEADER.unpack_from(data, at))
                at += HEADER_BYTES
            else:
                n = min(HEADER_BYTES - len(self._head), end - at)
                self._head += bytes(data[at : at + n])
                at += n
                if len(self._head) == HEADER_BYTES:
                    head, self._head = self._head, b""
                    self._on_header(HEADER.unpack(head))

    def _on_header(self, head: tuple[int, int, int, int, int]) -> None:
        version, kind, flags, id, length = head
        if version or kind > GO_AWAY or flags > 15:
            raise Violation(f"a frame of version {version}, type {kind}, flags {flags}")
        if kind == PING:
            self._on_ping(flags, length)
        elif kind == GO_AWAY:
            self.gone_away = length
        else:
            if flags & SYN:
                self._on_open(id)
            flow = self.flows.get(id)
            if flow is None and not (id and (id & 1 == self._their_parity or id < self._next_id)):
                raise Violation(f"a frame for stream {id}, which was never opened")
            if kind == DATA:
                self._on_data(flow, flags, length)
                return
            self._on_window(flow, length)
            self._on_flags(flow, flags)
        self.frames += 1

    def _on_open(self, id: int) -> None:
        if id & 1 != self._their_parity or not id:
            raise Violation(f"stream {id} is not the far side's to open")
        if id in self.flows:
            raise Violation(f"stream {id} is opened twice")
        if self._closing or self.inbound >= self.max_inbound or not self._pool.admits(self.inbound):
            self._put(WINDOW_UPDATE, RST, id, 0)
            self._owed += FIRST_WINDOW
            return
        flow = self.flows[id] = Flow(id, inbound=True, now=self._now)
        self.inbound += 1
        self._pool.inbound += 1
        self._put(WINDOW_UPDATE, ACK, id, 0)
        self.opened.append(flow)

    def _on_data(self, flow: Flow | None, flags: int, length: int) -> None:
        if flow is None or flow.given_up:
            self._owed -= length
            if self._owed < 0:
                raise Violation("more data for streams that are not open than was ever allowed")
            flow = None
        elif flow.ended and length:
            raise Violation(f"data on stream {flow.id} behind its end")
        else:
            flow.credit -= length
            if flow.credit < 0:
                raise Violation(f"{length} bytes on stream {flow.id}, {-flow.credit} beyond its window")
        self._flow, self._flags, self._left = flow, flags, length
        if not length:
            self._on_whole()

    def _on_body(self, data: memoryview) -> None:
        flow = self._flow
        self._left -= len(data)
        if flow is not None:
            if flow.given_up:  # since its header came
                self._flow = None
            else:
                held = flow.held
                taken = flow.deliver(data)
                self._count_held(flow.held - held)
                self._touched[flow] = None
                if taken:
                    self._consumed(flow, taken)
                if self._pool.crowded and self.held > MODEST_BYTES:
                    self._cut_off()
        if not self._left:
            self._on_whole()

    def _on_whole(self) -> None:
        self.frames += 1
        self._on_flags(self._flow, self._flags)
        self._flow = None

    def _on_flags(self, flow: Flow | None, flags: int) -> None:
        if flow is None or not flags & (FIN | RST):
            return
        if flags & FIN:
            flow.ended = True
        if flags & RST:
            self.resets += flow.inbound and not flow.answered
            flow.broken = True
            self._drop_queue(flow)
            self._drained[flow] = None
        self._touched[flow] = None
        self._settle(flow)

    def _on_window(self, flow: Flow | None, delta: int) -> None:
        if flow is None or (flow.finished and not flow.queued):
            return
        flow.send_window += delta
        if flow.send_window > MAX_LENGTH:
            raise Violation(f"a window of {flow.send_window} bytes")
        self._line_up(flow)

    def _on_ping(self, flags: int, value: int) -> None:
        if flags & SYN:
            self._put(PING, ACK, 0, value)
        elif value == self._ping and self._pinged is not None:
            self.round_trips.add(self._now - self._pinged, self._now)
            self._pinged = None

    def _cut_off(self) -> None:
        """Too much lies unread in this process: of this connection, the stream that holds most goes."""
        flow = max(self.flows.values(), key=lambda flow: flow.held)
        self.reset(flow, abruptly=True)
        flow.broken = True  # for its owner it is as if the far side had given up
        self._touched[flow] = None
        self._drained[flow] = None

    # --- what the owners of streams do -----------------------------------------------------------

    def open(self, now: float) -> Flow:
        """A new stream of ours; raises TooManyStreams."""
        if self.outbound >= self._max_outbound or self._next_id > MAX_ID - 2:
            raise TooManyStreams(f"{self.outbound} streams are open already")
        flow = self.flows[self._next_id] = Flow(self._next_id, inbound=False, now=now)
        self._next_id += 2
        self.outbound += 1
        self._put(WINDOW_UPDATE, SYN, flow.id, 0)
        return flow

    def send(self, flow: Flow, parts: Sequence[bytes | memoryview], copied: int = 0) -> None:
        """Queue `parts`: they stay as they are until `flow.queued` is 0, or are copies of so many bytes."""
        flow.put(parts)
        if copied:
            flow.copied += copied
            self.copied += copied
        self._line_up(flow)

    def take(self, flow: Flow, buffer: memoryview, now: float) -> int:
        """Read what lies there already, 0 if nothing does."""
        n = flow.take(buffer)
        if n:
            self._count_held(-n)
            self._now = now
            self._consumed(flow, n)
        return n

    def finish(self, flow: Flow) -> None:
        """No more will be sent; what is queued still goes out."""
        if flow.finished or flow.given_up or flow.broken:
            return
        flow.finished = True
        if not flow.queued:
            self._put(WINDOW_UPDATE, FIN, flow.id, 0)
            self._settle(flow)

    def reset(self, flow: Flow, *, abruptly: bool = False) -> None:
        """Give up on both directions; what arrived and was not read is dropped. Idempotent.

        What is queued goes out before, where the window lets it, unless that shall end `abruptly`; where both
        sides have ended already, all of it does.
        """
        if flow.given_up:
            return
        self._count_held(-flow.held)
        flow.chunks.clear()
        flow.held = 0
        if flow.ended and flow.finished and not abruptly:
            return
        if not (flow.ended or flow.broken):
            self._owed += flow.credit  # the body that is coming in was taken from it already
        if abruptly or flow.queued > flow.send_window:
            self._drop_queue(flow)
        if flow.id in self.flows and not flow.broken and not flow.queued:
            self._put(WINDOW_UPDATE, RST, flow.id, 0)
        flow.given_up = True
        self._settle(flow)

    def _consumed(self, flow: Flow, n: int) -> None:
        """Widen the far side's window again, in large steps: a frame for each small read would cost more."""
        flow.unsaid += n
        if flow.unsaid < flow.window // 2 or flow.ended or flow.id not in self.flows:
            return
        window = grown(flow.window, self._now - flow.said_at, self.round_trips.least)
        if window > flow.window and self._pool.grow(window - flow.window, self._grown):
            self._grown += window - flow.window
            flow.window = window
        coming = self._left if flow is self._flow else 0
        delta = flow.window - flow.credit - flow.held - coming
        if delta <= 0:  # so much is still on its way or unread
            return
        flow.credit += delta
        flow.unsaid = 0
        flow.said_at = self._now
        self._put(WINDOW_UPDATE, 0, flow.id, delta)
        if self._pinged is None and self.round_trips.wanting(self._now):
            self.ping(self._now)

    def _drop_queue(self, flow: Flow) -> None:
        self.copied -= flow.copied
        flow.copied = 0
        flow.drop_queue()

    def _count_held(self, change: int) -> None:
        self.held += change
        self._pool.held += change

    def _settle(self, flow: Flow) -> None:
        """Forget a stream for which no more frames matter."""
        if flow.over and self.flows.pop(flow.id, None) is not None:
            self._return(flow)

    def _return(self, flow: Flow) -> None:
        """Give back what an open stream takes of what all share."""
        self._grown -= flow.window - FIRST_WINDOW
        self._pool.grown -= flow.window - FIRST_WINDOW
        if flow.inbound:
            self.inbound -= 1
            self._pool.inbound -= 1
        else:
            self.outbound -= 1

    # --- sending -------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether `fill` has something to give."""
        return bool(self._control or self._round)

    def _put(self, kind: int, flags: int, id: int, length: int) -> None:
        self._control.append(HEADER.pack(0, kind, flags, id, length))

    def _line_up(self, flow: Flow) -> None:
        if flow.queued and flow.send_window > 0 and not flow.ready:
            flow.ready = True
            self._round.append(flow)

    def fill(self, out: memoryview) -> int:
        """Write frames into `out` (`MAX_PLAIN` bytes), to be sealed as one message; returns how many."""
        at, control, round_ = 0, self._control, self._round
        while control and at <= MAX_BODY:
            out[at : at + HEADER_BYTES] = control.popleft()
            at += HEADER_BYTES
        while round_:
            flow = round_[0]
            size = min(flow.queued, flow.send_window)
            if size > MAX_BODY - at:
                if at:
                    break  # a message of its own holds more of it
                size = MAX_BODY
            round_.popleft()
            flow.ready = False
            if not size:  # given up meanwhile
                continue
            HEADER.pack_into(out, at, 0, DATA, 0, flow.id, size)
            at = flow.fill(out, at + HEADER_BYTES, size)
            if flow.queued:
                self._line_up(flow)
            else:
                self._drained[flow] = None
                if flow.copied:
                    self.copied -= flow.copied
                    flow.copied = 0
                if flow.finished:
                    self._put(WINDOW_UPDATE, FIN, flow.id, 0)
                if flow.given_up:
                    self._put(WINDOW_UPDATE, RST, flow.id, 0)
                self._settle(flow)
        return at

    def ping(self, now: float) -> None:
        """Ask for a sign of life; the answer measures the round trip."""
        self._ping = (self._ping + 1) & MAX_LENGTH
        self._pinged = now
        self._put(PING, SYN, 0, self._ping)

    def go_away(self, ending: Ending) -> None:
        """Say that we close; streams that the far side still opens are refused."""
        if not self._closing:
            self._closing = True
            self._put(GO_AWAY, 0, 0, ending)

    # --- news ----------------------------------------------------------------------------------

    @property
    def news(self) -> int:
        """How many streams have something new to receive."""
        return len(self._touched)

    def tell(self) -> None:
        """Call the owners of the streams that something happened to."""
        if self._touched:
            touched, self._touched = self._touched, {}
            for flow in touched:
                flow.on_news()
        if self._drained:
            drained, self._drained = self._drained, {}
            for flow in drained:
                flow.on_room()

    def lose(self) -> None:
        """The connection is gone: every owner should look; what is held stays readable."""
        while self.opened:  # nobody will ever look at these
            self.reset(self.opened.popleft())
        for flow in self.flows.values():
            self._touched[flow] = None
            self._drained[flow] = None
            self._return(flow)
        self.flows.clear()
        self.tell()
