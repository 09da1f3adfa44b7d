"""One live connection to one peer: its streams, counted, and what the peer told of itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.node.transport.contract import ConnectionLost
from modelnet_p2p.node.transport.gate import Place
from modelnet_p2p.node.transport.identify import Told
from modelnet_p2p.node.transport.link import Link
from modelnet_p2p.node.transport.muxed_stream import MuxedStream
from modelnet_p2p.node.transport.wire.flow import Flow
from modelnet_p2p.node.transport.wire.yamux import TooManyStreams

HANDLERS = 2  # times the streams that the peer may have open: those of streams just reset are still at it


class Connection:
    """Runs in `run` until either side closes it or the network below does."""

    def __init__(
        self, link: Link, place: Place, dialled: str | None, on_lost: Callable[[Connection], None]
    ) -> None:
        self.peer = link.peer
        self.link = link
        self.dialled = dialled  # the address, if we opened it
        self.told: Told | None = None
        self.identified = trio.Event()  # set with `told`, or without when the peer would not tell
        self._place = place
        self._on_lost = on_lost
        self._serving = 0
        link.on_lost = self._lost

    @property
    def remote(self) -> tuple[str, int]:
        """IP address and port."""
        return self.link.remote

    @property
    def lost(self) -> bool:
        return self.link.lost

    async def run(
        self, serve: Callable[[Connection, MuxedStream], Awaitable[None]], tasks: trio.Nursery
    ) -> None:
        """Until the connection is lost; each stream that the peer opens is served in `tasks`."""

        async def serve_counted(stream: MuxedStream) -> None:
            try:
                await serve(self, stream)
            finally:
                self._serving -= 1

        def on_opened(flow: Flow) -> None:
            if self._serving >= HANDLERS * self.link.session.max_inbound:
                self.link.session.reset(flow)
                return
            self._serving += 1
            tasks.start_soon(serve_counted, MuxedStream(self.link, flow))

        await self.link.run(on_opened)

    def _lost(self) -> None:
        self.identified.set()
        self._place.leave()
        self._on_lost(self)

    @property
    def idle(self) -> bool:
        """Whether nothing runs on it but streams at rest."""
        return self.identified.is_set() and all(flow.at_rest for flow in self.link.session.flows.values())

    async def leave(self) -> None:
        """Close it with a word to the far side; idempotent."""
        await self.link.leave()

    async def open_stream(self, protocol: str, *, certain: bool, timeout: float) -> MuxedStream:
        """A stream that speaks `protocol`; `certain`: the peer has told so, do not wait for its answer.

        Raises RemoteError: busy, unreachable (it is closing), unknown-method, deadline, or ConnectionLost.
        """
        stream = MuxedStream(self.link, self._open())
        stream.propose(protocol)
        if not certain:
            await self._await_answers(stream, timeout)
        return stream

    def _open(self) -> Flow:
        session = self.link.session
        if self.lost or session.gone_away is not None:
            raise ConnectionLost(self.peer)
        try:
            return session.open(trio.current_time())
        except TooManyStreams:
            raise RemoteError(
                Code.BUSY,
                f"{session.outbound} streams to peer {self.peer} are open already",
                peer=str(self.peer),
                hint="end some of them, or ask another peer",
            ) from None

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
            raise RemoteError(
                Code.DEADLINE,
                f"peer {self.peer} did not agree on {stream.protocol} within {timeout:g} s",
                peer=str(self.peer),
            )
