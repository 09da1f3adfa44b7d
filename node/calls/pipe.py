"""Events over a stream: the one place where the call protocol's state machine meets bytes."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from modelnet_p2p.events import Event
from modelnet_p2p.exchange import Exchange, Role
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.tree import Buffer
from modelnet_p2p.tuning import Tuning


class EventPipe:
    """An `Exchange` on a `Stream`. One task may send while another receives."""

    def __init__(self, stream: Stream, role: Role, tuning: Tuning) -> None:
        self.stream = stream
        self.exchange = Exchange(role, max_body=MAX_BODY_BYTES)
        self._body_timeout = tuning.frame_body_timeout
        self._stall_timeout = tuning.stall_timeout

    async def send(self, event: Event) -> None:
        """Send one event; a reader without progress for `stall_timeout` loses the stream.

        Raises StreamReset or ConnectionLost; trio.TooSlowError when the far side does not read.
        """
        for buffers in _slices(self.exchange.send(event)):
            with trio.fail_after(self._stall_timeout):
                await self.stream.send(buffers)

    async def receive(self) -> Event | None:
        """The next event, or None when the far side ended cleanly between two calls.

        Raises RemoteProtocolError (its bytes make no sense, or end in the middle of a call), StreamReset,
        ConnectionLost, trio.TooSlowError (a started frame came to a stop).
        """
        while (event := self.exchange.next_event()) is None:
            buffer = self.exchange.get_buffer()
            if self.exchange.in_frame:
                with trio.fail_after(self._body_timeout):
                    count = await self.stream.receive_into(buffer)
            else:
                count = await self.stream.receive_into(buffer)
            self.exchange.received(count)
            if count == 0:
                return self.exchange.next_event()  # raises if that was in the middle of a call
        return event


SLICE_BYTES = 4 << 20  # what one deadline of `send` covers: a large tensor is not one unit of progress


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
