"""Events over a stream: the one place where the call protocol's state machine meets bytes.

What can go wrong with a stranger's stream leaves here as a ModelnetError, whatever the transport or the
clock made of it: nothing above this page need know of trio's own errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.events import Event
from modelnet_p2p.exchange import Exchange, Role
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.node.transport.contract import Stream, StreamReset
from modelnet_p2p.tree import Buffer
from modelnet_p2p.tuning import Tuning

# What one deadline of `send` covers: with 30 s for it a reader may be as slow as 9 KB/s.
SLICE_BYTES = 256 << 10
MIN_BYTES_PER_SECOND = 1024  # inside of a frame: who is slower holds a place without using it
SMALL_BYTES = 64 << 10  # of what is sent; below it the stream's own buffers are the larger part


class EventPipe:
    """An `Exchange` on a `Stream`. One task may send while another receives."""

    def __init__(self, stream: Stream, role: Role, tuning: Tuning, budget: Budget) -> None:
        self.stream = stream
        self.exchange = Exchange(role, max_body=MAX_BODY_BYTES, allocate=self._allocate)
        self.limit = MAX_BODY_BYTES  # of a body received; a caller who expects little says so
        self.received = 0  # bytes of the event that came last, to be given to `release`
        self._budget = budget
        self._held = 0  # taken from the budget and not yet released
        self._body_timeout = tuning.frame_body_timeout
        self._stall_timeout = tuning.stall_timeout

    async def send(self, event: Event) -> None:
        """Send one event; a reader without progress for `stall_timeout` loses the stream.

        Raises LocalProtocolError (nothing was sent, the stream goes on), StreamReset, ConnectionLost,
        RemoteError (slow-reader, busy: too many unread answers); after these the stream is of no more use.
        """
        buffers = self.exchange.send(event)
        size = 0
        if self.exchange.role is Role.ANSWERER:  # a caller's values are its own
            size = sum(len(buffer) for buffer in buffers)
            size = size if size > SMALL_BYTES else 0
            if not self._take(size):
                raise self._error(Code.BUSY, "leaves too many answers unread")
        try:
            for run in _slices(buffers):
                with trio.fail_after(self._stall_timeout):
                    await self.stream.send(run)
        except trio.TooSlowError:
            raise self._error(Code.SLOW_READER, "does not read what it is sent") from None
        except trio.ClosedResourceError:  # another task of ours has given up on the stream
            raise StreamReset(self.stream.peer, self.stream.protocol) from None
        finally:
            self.release(size)

    async def receive(self) -> Event | None:
        """The next event, or None when the far side ended cleanly between two calls.

        Raises RemoteProtocolError (its bytes make no sense, end in the middle of a call, or find no
        room here: busy), StreamReset, ConnectionLost, RemoteError (deadline: a started frame came to a stop).
        """
        self.received = 0
        patience = self._body_timeout  # seconds of waiting that this frame has left, beside its rate
        while (event := self.exchange.next_event()) is None:
            buffer = self.exchange.get_buffer()
            inside = self.exchange.in_frame
            before = trio.current_time()
            try:
                with trio.fail_after(min(patience, self._body_timeout) if inside else float("inf")):
                    count = await self.stream.receive_into(buffer)
            except trio.TooSlowError:
                raise self._error(Code.DEADLINE, "stopped in the middle of a message") from None
            except trio.ClosedResourceError:
                raise StreamReset(self.stream.peer, self.stream.protocol) from None
            if inside:
                patience += count / MIN_BYTES_PER_SECOND - (trio.current_time() - before)
                self._hold(count)
            self.exchange.received(count)
            if count == 0:
                return self.exchange.next_event()  # raises if that was in the middle of a call
        return event

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
        if self._take(count):
            self.received += count
            return
        raise self.exchange.refuse(Code.BUSY, "there is no room for so many large values at once")

    def _allocate(self, size: int) -> memoryview:
        if size > self.limit:
            raise MemoryError
        from modelnet_p2p.tensor import allocate  # not at the top: numpy, see payload

        return allocate(size)

    def _error(self, code: Code, what: str) -> RemoteError:
        peer = self.stream.peer
        return RemoteError(code, f"peer {peer.short} {what}", peer=peer.text)


def _slices(buffers: Sequence[Buffer]) -> list[list[bytes | memoryview]]:
    """`buffers` in runs of about SLICE_BYTES, without copying."""
    runs: list[list[bytes | memoryview]] = [[]]
    room = SLICE_BYTES
    for buffer in buffers:
        view = buffer if isinstance(buffer, bytes) and len(buffer) <= room else memoryview(buffer).cast("B")
        while len(view) > room:
            runs[-1].append(view[:room])
            view = view[room:]
            runs.append([])
            room = SLICE_BYTES
        runs[-1].append(view)
        room -= len(view)
    return runs
