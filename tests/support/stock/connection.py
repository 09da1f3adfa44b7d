"""One live connection through stock yamux: its streams, counted, and what the peer told of itself."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.node.transport.contract import ConnectionLost
from modelnet_p2p.node.transport.gate import Place
from modelnet_p2p.node.transport.identify import Told
from stock.muxed_stream import MuxedStream
from stock.muxer import Muxer

SLACK = 32  # streams that the far side knows to be over and we do not yet
MAX_OUTBOUND = 250  # stock yamux waits forever to open its 257th

log = logging.getLogger(__name__)


class Connection:
    """Runs in `run` until either side closes it or the network below does."""

    def __init__(
        self,
        muxer: Muxer,
        place: Place,
        dialled: str | None,
        on_lost: Callable[[Connection], None],
    ) -> None:
        self.peer = muxer.peer
        self.muxer = muxer
        self.remote = muxer.wire.remote  # IP address and port
        self.dialled = dialled  # the address, if we opened it
        self.told: Told | None = None
        self.identified = trio.Event()  # set with `told`, or without when the peer would not tell
        self._wire = muxer.wire
        self._place = place
        self._on_lost = on_lost
        self.muxer.on_lost = self._lost
        self.inbound = 0  # open streams that the peer opened
        self.outbound = 0  # ... that we did

    @property
    def lost(self) -> bool:
        return self.muxer.lost

    @property
    def idle(self) -> bool:
        return False  # who knows

    async def run(
        self, serve: Callable[[Connection, MuxedStream], Awaitable[None]], tasks: trio.Nursery
    ) -> None:
        """Receive until the connection is lost; each stream that the peer opens is served in `tasks`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wire.pump)
                nursery.start_soon(self.muxer.start)
                while (raw := await self.muxer.accept()) is not None:
                    stream = MuxedStream(self.muxer, raw, self._inbound_over)
                    self.inbound += 1
                    if self.inbound > self.muxer.max_streams + SLACK:
                        log.debug("stream-refused peer=%s open=%d", self.peer.short, self.inbound - 1)
                        await stream.reset()
                    else:
                        tasks.start_soon(serve, self, stream)
                nursery.cancel_scope.cancel()
        finally:
            self.muxer.lose()

    def _lost(self) -> None:
        self.identified.set()
        self._place.leave()
        self._on_lost(self)

    async def leave(self) -> None:
        """Close it with a word to the far side; idempotent."""
        await self.muxer.leave()

    async def open_stream(self, protocol: str, *, certain: bool, timeout: float) -> MuxedStream:
        """A stream that speaks `protocol`; `certain`: the peer has told so, do not wait for its answer.

        Raises RemoteError: busy, unknown-method, deadline, or ConnectionLost.
        """
        if self.outbound >= min(self.muxer.max_streams, MAX_OUTBOUND):
            raise RemoteError(
                Code.BUSY,
                f"{self.outbound} streams to peer {self.peer} are open already",
                peer=str(self.peer),
                hint="end some of them, or ask another peer",
            )
        self.outbound += 1
        try:
            raw = await self._open_raw(timeout)
        except BaseException:
            self.outbound -= 1
            raise
        stream = MuxedStream(self.muxer, raw, self._outbound_over)
        stream.propose(protocol)
        if not certain:
            await self._await_answers(stream, timeout)
        return stream

    async def _open_raw(self, timeout: float) -> YamuxStream:
        with trio.move_on_after(timeout):
            await self._wire.writable()
            if self.lost:
                raise ConnectionLost(self.peer)
            return await self.muxer.open()
        raise self._too_slow("take a stream", timeout)

    async def _await_answers(self, stream: MuxedStream, timeout: float) -> None:
        agreed = False
        try:
            with trio.move_on_after(timeout):
                await stream.answered()
                agreed = True
        finally:
            if not agreed:
                await stream.reset()
        if not agreed:
            raise self._too_slow(f"agree on {stream.protocol}", timeout)

    def _too_slow(self, what: str, timeout: float) -> RemoteError:
        return RemoteError(
            Code.DEADLINE, f"peer {self.peer} did not {what} within {timeout:g} s", peer=str(self.peer)
        )

    def _inbound_over(self) -> None:
        self.inbound -= 1

    def _outbound_over(self) -> None:
        self.outbound -= 1
