"""Asks one peer: a call goes out on a pooled stream, items and one end come back.

This room knows one provider and tries it once; who is asked, and whether another is asked after
a failure, is decided in `router.py`. Leaving a call before its end resets the stream, which cancels the
work on the far side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.events import Call, Fault, Item, Result
from modelnet_p2p.exchange import RemoteProtocolError, Role
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.calls.pipe import EventPipe
from modelnet_p2p.node.transport.contract import ConnectionLost, Network, Stream, StreamReset
from modelnet_p2p.tuning import Tuning

MAX_IDLE_STREAMS = 16  # kept open per peer: enough for a burst of callers, far below the stream cap
DEADLINE_GRACE = 0.25  # the far side's own deadline fault may still arrive, and says more than ours


@dataclass(slots=True)
class Progress:
    """How far a call got; decides whether another provider may be asked after a failure."""

    sent: bool = False  # the first byte of the call may have left this machine
    items: int = 0  # handed to the caller


class Ongoing:
    """A call that was sent: `receive` gives its items, then its result."""

    def __init__(self, pipe: EventPipe, progress: Progress) -> None:
        self._pipe = pipe
        self._progress = progress
        self.ended = False  # the far side has said its last word; the stream can serve another call

    async def receive(self) -> Item | Result:
        """The next item, or the result, after which nothing follows.

        Raises RemoteError with the far side's code for its fault, and `unreachable` when the stream or
        the connection died.
        """
        peer = self._pipe.stream.peer
        try:
            event = await self._pipe.receive()
        except RemoteProtocolError as error:
            if error.code is Code.UNREACHABLE:  # an end in the middle of the call
                raise StreamReset(peer, self._pipe.stream.protocol) from error
            raise RemoteError(
                Code.INTERNAL, f"peer {peer.short} broke the call protocol: {error.message}", peer=peer.text
            ) from error
        except trio.TooSlowError as error:
            raise RemoteError(
                Code.UNREACHABLE, f"peer {peer.short} stopped in the middle of an answer", peer=peer.text
            ) from error
        match event:
            case Item():
                self._progress.items += 1
                return event
            case Result():
                self.ended = True
                return event
            case Fault():
                self.ended = True
                raise event.error(peer.text)
            case _:
                raise StreamReset(peer, self._pipe.stream.protocol)


class CallClient:
    """Calls to any peer over one network; keeps idle streams for the next call."""

    def __init__(
        self, network: Network, protocol: str, tuning: Tuning, loopback: Callable[[], Stream]
    ) -> None:
        """`loopback` opens a stream to this peer's own server: nobody dials itself."""
        self._network = network
        self._loopback = loopback
        self._protocol = protocol
        self._tuning = tuning
        self._idle: dict[PeerId, deque[tuple[EventPipe, float]]] = {}
        network.on_disconnected(self._forget)

    @asynccontextmanager
    async def open(
        self,
        peer: PeerId,
        addrs: Sequence[str],
        call: Call,
        timeout: float,
        progress: Progress | None = None,
    ) -> AsyncIterator[Ongoing]:
        """Send `call` to `peer` and yield it as it runs; all of it ends within `timeout` seconds.

        Raises RemoteError: unreachable, deadline, or whatever fault the far side answers.
        """
        progress = progress or Progress()
        deadline = trio.current_time() + timeout
        with trio.CancelScope(deadline=deadline + DEADLINE_GRACE) as scope:
            pipe, ongoing = await self._start(peer, addrs, call, deadline, progress)
            try:
                yield ongoing
            finally:
                if ongoing.ended:
                    self._keep(peer, pipe)
                else:
                    with trio.CancelScope(shield=True):
                        await pipe.stream.reset()
        if scope.cancelled_caught:
            raise RemoteError(
                Code.DEADLINE,
                f"peer {peer.short} did not answer within {timeout:g} s",
                peer=peer.text,
                hint="a longer --timeout, or another provider",
            )

    async def unary(
        self, peer: PeerId, addrs: Sequence[str], call: Call, timeout: float, progress: Progress | None = None
    ) -> Result:
        """A call whose items nobody wants: its result."""
        async with self.open(peer, addrs, call, timeout, progress) as ongoing:
            while True:
                event = await ongoing.receive()
                if isinstance(event, Result):
                    return event

    async def _start(
        self, peer: PeerId, addrs: Sequence[str], call: Call, deadline: float, progress: Progress
    ) -> tuple[EventPipe, Ongoing]:
        if (pipe := self._reuse(peer)) is not None:
            try:
                await self._send(pipe, call, deadline)
            except (StreamReset, ConnectionLost):
                pass  # it died while it was idle: nothing of this call reached the far side
            else:
                progress.sent = True
                return pipe, Ongoing(pipe, progress)
        pipe = EventPipe(await self._open_stream(peer, addrs), Role.CALLER, self._tuning)
        progress.sent = True
        await self._send(pipe, call, deadline)
        return pipe, Ongoing(pipe, progress)

    async def _open_stream(self, peer: PeerId, addrs: Sequence[str]) -> Stream:
        if peer == self._network.id:
            return self._loopback()
        await self._network.connect(peer, addrs)
        return await self._network.open_stream(peer, self._protocol)

    async def _send(self, pipe: EventPipe, call: Call, deadline: float) -> None:
        remaining = max(0.0, deadline - trio.current_time())
        try:
            await pipe.send(replace(call, deadline_us=int(remaining * 1e6)))
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await pipe.stream.reset()
            if isinstance(error, trio.TooSlowError):
                peer = pipe.stream.peer.text
                raise RemoteError(Code.SLOW_READER, "the peer does not take the call", peer=peer) from error
            raise

    def _reuse(self, peer: PeerId) -> EventPipe | None:
        idle = self._idle.get(peer)
        return idle.pop()[0] if idle else None

    def _keep(self, peer: PeerId, pipe: EventPipe) -> None:
        idle = self._idle.setdefault(peer, deque())
        idle.append((pipe, trio.current_time()))

    async def close_idle(self) -> None:
        """Close streams that have been idle for `tuning.idle_stream`, and those above the bound."""
        oldest = trio.current_time() - self._tuning.idle_stream
        for peer, idle in list(self._idle.items()):
            while idle and (idle[0][1] < oldest or len(idle) > MAX_IDLE_STREAMS):
                await idle.popleft()[0].stream.reset()
            if not idle:
                del self._idle[peer]

    def _forget(self, peer: PeerId) -> None:
        self._idle.pop(peer, None)
