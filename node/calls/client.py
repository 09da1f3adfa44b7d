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

from modelnet_p2p.errors import Code, LocalError, ModelnetError, RemoteError
from modelnet_p2p.events import Call, Fault, Item, Result
from modelnet_p2p.exchange import RemoteProtocolError, Role
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.calls.pipe import EventPipe
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.node.transport.contract import ConnectionLost, Network, Stream, StreamReset
from modelnet_p2p.tuning import Tuning

MAX_IDLE_STREAMS = 64  # kept open per peer: as many as a model may have slots, far below the stream cap
DEADLINE_GRACE = 0.25  # the far side's own deadline fault may still arrive, and says more than ours
LAST_WORDS = 1.0  # seconds for the fault of a far side that broke off while the call was being sent
MAX_DEADLINE = 86_400.0  # seconds that are told to the far side, which has a limit of its own


@dataclass(slots=True)
class Progress:
    """How far a call got; decides whether another provider may be asked after a failure."""

    sent: bool = False  # the last byte of the call may have left this machine; before that nothing can run
    items: int = 0  # handed to the caller


class Ongoing:
    """A call that was sent: `receive` gives its items, then its result."""

    def __init__(self, pipe: EventPipe, progress: Progress) -> None:
        self.pipe = pipe
        self._progress = progress
        self._expanded = pipe.expanded  # by calls before this one
        self.ended = False  # the far side has said its last word; the stream can serve another call

    @property
    def bytes_in(self) -> int:
        """Bytes of this call's answer so far."""
        return self.pipe.exchange.bytes_in

    @property
    def bytes_held(self) -> int:
        """What the answer so far takes here: its bytes, and what became of its compact tensors."""
        return self.bytes_in + self.pipe.expanded - self._expanded

    async def receive(self) -> Item | Result:
        """The next item, or the result, after which nothing follows.

        Raises RemoteError with the far side's code for its fault, and `unreachable` when the stream or
        the connection died.
        """
        peer = self.pipe.stream.peer
        try:
            event = await self.pipe.receive()
        except RemoteProtocolError as error:
            if error.code is Code.UNREACHABLE:  # an end in the middle of the call
                raise StreamReset(peer, self.pipe.stream.protocol) from error
            code = error.code if error.code is Code.TOO_LARGE else Code.INTERNAL
            raise RemoteError(
                code, f"peer {peer.short} broke the call protocol: {error.message}", peer=peer.text
            ) from error
        except RemoteError as error:
            if error.code is not Code.DEADLINE:
                raise
            raise RemoteError(Code.UNREACHABLE, error.message, peer=peer.text) from error
        self.pipe.release(self.pipe.received)  # from here on it is the caller's own
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
                raise StreamReset(peer, self.pipe.stream.protocol)


def told_us(seconds: float) -> int:
    """What the far side is told of a call that may take that long, in microseconds."""
    return int(min(max(0.0, seconds), MAX_DEADLINE) * 1e6)


def no_answer(peer: PeerId, timeout: float) -> RemoteError:
    """What a caller meets whose time is over."""
    return RemoteError(
        Code.DEADLINE,
        f"peer {peer.short} did not answer within {timeout:g} s",
        peer=peer.text,
        hint="a longer --timeout, or another provider",
    )


class CallClient:
    """Calls to any peer over one network; keeps idle streams for the next call."""

    def __init__(
        self, network: Network, protocol: str, tuning: Tuning, budget: Budget, loopback: Callable[[], Stream]
    ) -> None:
        """`loopback` opens a stream to this peer's own server: nobody dials itself."""
        self._network = network
        self._budget = budget
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
        *,
        max_body: int = MAX_BODY_BYTES,
    ) -> AsyncIterator[Ongoing]:
        """Send `call` to `peer` and yield it as it runs; all of it ends within `timeout` seconds.

        `max_body` bounds each value that the peer may send. Raises RemoteError: unreachable, deadline, or
        whatever fault the far side answers.
        """
        deadline = trio.current_time() + timeout
        call = replace(call, deadline_us=told_us(timeout))
        with trio.CancelScope(deadline=deadline + DEADLINE_GRACE) as scope:
            ongoing = await self.begin(peer, addrs, call, deadline, progress or Progress(), max_body=max_body)
            try:
                yield ongoing
            finally:
                await self.leave(ongoing)
        if scope.cancelled_caught:
            raise no_answer(peer, timeout)

    async def unary(
        self,
        peer: PeerId,
        addrs: Sequence[str],
        call: Call,
        timeout: float,
        progress: Progress | None = None,
        *,
        max_body: int = MAX_BODY_BYTES,
    ) -> Result:
        """A call whose items nobody wants: its result."""
        async with self.open(peer, addrs, call, timeout, progress, max_body=max_body) as ongoing:
            while True:
                event = await ongoing.receive()
                if isinstance(event, Result):
                    return event

    async def begin(
        self,
        peer: PeerId,
        addrs: Sequence[str],
        call: Call,
        deadline: float,
        progress: Progress,
        *,
        max_body: int = MAX_BODY_BYTES,
    ) -> Ongoing:
        """Send `call`, which tells its deadline as of now, within bounds that are the caller's: a scope that
        ends at `deadline` (trio time) or soon after, and a `leave` whatever happens."""
        pipe = await self._start(peer, addrs, call, deadline, progress)
        pipe.limit = max_body
        return Ongoing(pipe, progress)

    async def leave(self, ongoing: Ongoing) -> None:
        """Done with the call: where it has not ended it is cancelled. The stream may serve the next one."""
        pipe = ongoing.pipe
        pipe.close()
        # bytes behind the last word would be taken for the next call's answer
        if ongoing.ended and not pipe.exchange.in_frame:
            self._keep(pipe.stream.peer, pipe)
        else:
            await _reset(pipe)

    async def _start(
        self, peer: PeerId, addrs: Sequence[str], call: Call, deadline: float, progress: Progress
    ) -> EventPipe:
        if (pipe := await self._reuse(peer)) is not None:
            try:
                await self._send(pipe, call)
            except (StreamReset, ConnectionLost):
                pass  # it died while it was idle, or before all was sent: nothing can have run there
            else:
                progress.sent = True
                return pipe
        stream = await self._open_stream(peer, addrs)
        pipe = EventPipe(stream, Role.CALLER, self._tuning, self._budget)
        left = deadline - trio.current_time()  # to open it may have taken long
        await self._send(pipe, replace(call, deadline_us=told_us(left)))
        progress.sent = True
        return pipe

    async def _open_stream(self, peer: PeerId, addrs: Sequence[str]) -> Stream:
        if peer == self._network.id:
            return self._loopback()
        try:
            await self._network.connect(peer, addrs)
        except LocalError as error:  # a stranger's address that is none
            raise RemoteError(Code.UNREACHABLE, error.message, peer=peer.text) from error
        return await self._network.open_stream(peer, self._protocol)

    async def _send(self, pipe: EventPipe, call: Call) -> None:
        """Send all of the call; a stream on which that did not succeed is reset."""
        sent = False
        try:
            await pipe.send(call)
            sent = True
        except StreamReset:
            fault = await _last_words(pipe)
            if fault is None:
                raise
            raise fault.error(pipe.stream.peer.text) from None
        finally:
            if not sent:
                await _reset(pipe)

    async def _reuse(self, peer: PeerId) -> EventPipe | None:
        """The idle stream that was used last, unless that is so long ago that the far side may let go."""
        idle = self._idle.get(peer)
        if not idle:
            return None
        pipe, since = idle.pop()
        if trio.current_time() - since <= self._tuning.idle_stream:
            return pipe
        await _reset(pipe)
        return None

    def _keep(self, peer: PeerId, pipe: EventPipe) -> None:
        self._idle.setdefault(peer, deque()).append((pipe, trio.current_time()))

    async def close_idle(self) -> None:
        """Close streams that have been idle for `tuning.idle_stream`, and those above the bound."""
        oldest = trio.current_time() - self._tuning.idle_stream
        for peer, idle in list(self._idle.items()):
            while idle and (idle[0][1] < oldest or len(idle) > MAX_IDLE_STREAMS):
                await _reset(idle.popleft()[0])
            if not idle and self._idle.get(peer) is idle:  # the peer may have gone, and come, meanwhile
                del self._idle[peer]

    def _forget(self, peer: PeerId) -> None:
        self._idle.pop(peer, None)


async def _reset(pipe: EventPipe) -> None:
    with trio.CancelScope(shield=True):  # quick: nothing of the far side is waited for
        await pipe.stream.reset()
    pipe.close()


async def _last_words(pipe: EventPipe) -> Fault | None:
    """Why the far side broke off while it was being sent to, if it said so."""
    with trio.move_on_after(LAST_WORDS):
        try:
            event = await pipe.receive()
        except ModelnetError:
            return None
        return event if isinstance(event, Fault) else None
    return None
