"""Events over a stream: the one place where the call protocol's state machine meets bytes.

What can go wrong with a stranger's stream leaves here as a ModelnetError, whatever the transport or the
clock made of it: nothing above this page need know of trio's own errors.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.events import Call, Event, Item, Result
from modelnet_p2p.exchange import Exchange, Role
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.calls.compacting import compact_in, compacted, expanded
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.node.transport.contract import Stream, StreamReset
from modelnet_p2p.tree import Buffer
from modelnet_p2p.tuning import Tuning

# What one deadline of `send` covers. After a slice that was taken quickly comes one of twice the size, up
# to the last of these: 128 MiB are 132 turns. Two of them fill a first window, so that a slow reader
# meets 256 KiB at most: with 30 s for those it may be as slow as 9 KB/s.
FIRST_SLICE_BYTES = 64 << 10
LAST_SLICE_BYTES = 1 << 20
QUICK_SHARE = 1 / 32  # of that deadline
MIN_BYTES_PER_SECOND = 1024  # inside of a frame: who is slower holds a place without using it
SMALL_BYTES = 64 << 10  # of what is sent; up to it the stream's own buffers are the larger part


# By a body's size and its frame's head; None: it may lie anywhere. Quick, and must not raise.
Place = Callable[[int, Mapping[str, object]], memoryview | None]


class EventPipe:
    """An `Exchange` on a `Stream`. One task may send while another receives."""

    def __init__(
        self, stream: Stream, role: Role, tuning: Tuning, budget: Budget, place: Place | None = None
    ) -> None:
        """`place` may name the memory in which a large body arrives."""
        self.stream = stream
        self._place = place
        self.exchange = Exchange(role, max_body=MAX_BODY_BYTES, allocate=self._allocate)
        self.limit = MAX_BODY_BYTES  # of a body received; a caller who expects little says so
        self.received = 0  # bytes of the event that came last, to be given to `release`
        self.expanded = 0  # bytes of all tensors that came compact, beside those of their frames
        self.idle: trio.CancelScope | None = None  # its deadline bounds the wait for a frame's first byte
        self._budget = budget
        self._held = 0  # taken from the budget and not yet released
        self._body_timeout = tuning.frame_body_timeout
        self._stall_timeout = tuning.stall_timeout

    async def send(self, event: Event) -> None:
        """Send one event; a reader without progress for `stall_timeout` loses the stream.

        Raises LocalProtocolError (nothing was sent, the stream goes on), StreamReset, ConnectionLost,
        RemoteError (slow-reader, busy: too many unread answers); after these the stream is of no more use.
        """
        if self.exchange.wire and isinstance(event, (Item, Result)):
            event = await self._compacted(event)
        buffers = self.exchange.send(event)
        size = sum(map(len, buffers))
        try:
            if size > SMALL_BYTES:
                await self._send_large(buffers, size)
            elif (
                self.exchange.role is Role.CALLER
            ):  # it has room between two calls, and a deadline of its own
                await self.stream.send(buffers)
            elif not self.stream.send_now(b"".join(buffers)):
                with trio.CancelScope(deadline=trio.current_time() + self._stall_timeout) as scope:
                    await self.stream.send(buffers)
                if scope.cancelled_caught:
                    raise self._slow()
        except trio.ClosedResourceError:  # another task of ours has given up on the stream
            raise StreamReset(self.stream.peer, self.stream.protocol) from None

    async def _send_large(self, buffers: Sequence[Buffer], size: int) -> None:
        self.take_time()
        held = size if self.exchange.role is Role.ANSWERER else 0  # a caller's values are its own
        if not self._take(held):
            raise self._error(Code.BUSY, "leaves too many answers unread")
        try:
            rest = deque(memoryview(buffer).cast("B") for buffer in buffers if len(buffer))
            size = FIRST_SLICE_BYTES
            while rest:
                started = trio.current_time()
                with trio.fail_after(self._stall_timeout):
                    await self.stream.send(_take(rest, size))
                quick = trio.current_time() - started < self._stall_timeout * QUICK_SHARE
                size = min(2 * size, LAST_SLICE_BYTES) if quick else FIRST_SLICE_BYTES
        except trio.TooSlowError:
            raise self._slow() from None
        finally:
            self.release(held)

    def _slow(self) -> RemoteError:
        return self._error(Code.SLOW_READER, "does not read what it is sent")

    async def receive(self) -> Event | None:
        """The next event, or None when the far side ended cleanly between two calls.

        Raises RemoteProtocolError (its bytes make no sense, end in the middle of a call, or find no
        room here: busy), StreamReset, ConnectionLost, RemoteError (deadline: a started frame came to a stop).
        """
        self.received = 0
        exchange = self.exchange
        patience = self._body_timeout  # seconds of waiting that this frame has left, beside its rate
        while (event := exchange.next_event()) is None:
            buffer = exchange.get_buffer()
            try:
                if exchange.in_frame:
                    before = trio.current_time()
                    count = await self._receive_inside(buffer, min(patience, self._body_timeout))
                    patience += count / MIN_BYTES_PER_SECOND - (trio.current_time() - before)
                else:
                    count = await self.stream.receive_into(buffer)
            except trio.ClosedResourceError:
                raise StreamReset(self.stream.peer, self.stream.protocol) from None
            exchange.received(count)
            if count == 0:
                return exchange.next_event()  # raises if that was in the middle of a call
        return await self._whole(event) if exchange.wire else event

    async def _compacted(self, event: Item | Result) -> Item | Result:
        """With its tensors as the call wants them; a caller that sends items chose the form, and is bound."""
        strict = self.exchange.role is Role.CALLER
        value, any_compact = await compacted(event.value, self.exchange.wire, strict=strict)
        return replace(event, value=value, wire=self.exchange.wire) if any_compact else event

    async def _whole(self, event: Event) -> Event:
        """With its compact tensors as arrays again, bounded like a body that had brought them whole."""
        if not isinstance(event, (Call, Item, Result)) or not event.wire:
            return event
        tensors, size = compact_in(event.value)
        if not tensors:
            return event
        self.take_time()
        self._hold(size)
        self.expanded += size
        try:
            room = self._allocate(size, {"target": event.target} if isinstance(event, Call) else {})
        except MemoryError:
            raise self.exchange.refuse(
                Code.TOO_LARGE, f"no memory for compact tensors that come to {size} bytes"
            ) from None
        return replace(event, value=await expanded(event.value, tensors, room))

    async def _receive_inside(self, buffer: memoryview, patience: float) -> int:
        """More of a frame that has begun: its sender may not dawdle, and its bytes count."""
        self.take_time()
        try:
            with trio.fail_after(patience):
                count = await self.stream.receive_into(buffer)
        except trio.TooSlowError:
            raise self._error(Code.DEADLINE, "stopped in the middle of a message") from None
        self._hold(count)
        return count

    def take_time(self) -> None:
        """What comes now has bounds of its own: the wait for a call that `idle` bounds is over."""
        if self.idle is not None and self.idle.deadline != math.inf:
            self.idle.deadline = math.inf

    def release(self, size: int) -> None:
        """The value of an event of `size` bytes received is let go."""
        size = min(size, self._held)
        self._held -= size
        self._budget.give(self.stream.peer, size)

    def close(self) -> None:
        """Whatever is still held is let go; for the way out."""
        self.release(self._held)

    def _take(self, size: int) -> bool:
        if not self._budget.take(self.stream.peer, size):
            return False
        self._held += size
        return True

    def _hold(self, count: int) -> None:
        if not self._take(count):
            raise self.exchange.refuse(Code.BUSY, "there is no room for so many large values at once")
        self.received += count

    def _allocate(self, size: int, fields: Mapping[str, object]) -> memoryview:
        if size > self.limit:
            raise MemoryError
        # what is compact is for nobody but us: it is expanded into the place that the model likes
        place = None if "wire" in fields else self._place
        if place is not None and (room := place(size, fields)) is not None:
            return room
        from modelnet_p2p.tensor import allocate  # not at the top: numpy, see payload

        return allocate(size)

    def _error(self, code: Code, what: str) -> RemoteError:
        peer = self.stream.peer
        return RemoteError(code, f"peer {peer.short} {what}", peer=peer.text)


def _take(rest: deque[memoryview], size: int) -> list[memoryview]:
    """The next `size` bytes of what is left to send, uncopied."""
    run: list[memoryview] = []
    while rest and size:
        view = rest.popleft()
        if len(view) > size:
            rest.appendleft(view[size:])
            view = view[:size]
        run.append(view)
        size -= len(view)
    return run
