"""One long-lived kad stream to one peer: requests go out, replies come back in the same order.

The kad protocol has no request ids; order is the only thing that ties a reply to its request. So a
request that times out poisons the stream: it is reset, all that wait on it fail, and the next
request opens a fresh one. Some stock nodes reset a kad stream that was idle for ten seconds; a
stream that dies with nothing in flight is reopened without any failure counted, and so is one
that dies before it ever answered the request that was written to it after an idle time.
"""

from __future__ import annotations

from collections import deque

import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import BadMessage, Framer, Message, frame
from modelnet_p2p.node.transport.contract import ConnectionLost, Network, Stream, StreamReset

MAX_IN_FLIGHT = 8  # what a peer will read ahead for us; js allows 32 streams, go one request at a time
READ_BYTES = 65536


class _Slot:
    """Where one request waits for its reply."""

    __slots__ = ("done", "error", "reply", "request")

    def __init__(self, request: Message) -> None:
        self.request = request
        self.reply: Message | None = None
        self.error: RemoteError | None = None
        self.done = trio.Event()


class KadChannel:
    """Requests to `peer`; several tasks may call `request` at the same time."""

    def __init__(self, network: Network, peer: PeerId, protocol: str, nursery: trio.Nursery) -> None:
        self._network = network
        self._peer = peer
        self._protocol = protocol
        self._nursery = nursery
        self._stream: Stream | None = None
        self._waiting: deque[_Slot] = deque()
        self._window = trio.CapacityLimiter(MAX_IN_FLIGHT)
        self._sending = trio.Lock()  # keeps the order of slots that of the frames

    async def request(self, message: Message, timeout: float) -> Message:
        """Send and await the reply; raises RemoteError (deadline, unreachable) within `timeout` seconds."""
        with trio.move_on_after(timeout):
            async with self._window:
                return await self._attempt(message)
        raise RemoteError(
            Code.DEADLINE, f"no DHT answer within {timeout:g} s", peer=self._peer.text, retryable=True
        )

    async def notify(self, message: Message, timeout: float) -> None:
        """Send what will not be answered (ADD_PROVIDER to a stock node) on a stream of its own."""
        with trio.move_on_after(timeout):
            stream = await self._network.open_stream(self._peer, self._protocol)
            await stream.send([frame(message)])
            await stream.finish()
            return
        raise RemoteError(Code.DEADLINE, "the message could not be sent in time", peer=self._peer.text)

    async def _attempt(self, message: Message) -> Message:
        reused = self._stream is not None
        try:
            return await self._once(message)
        except (StreamReset, ConnectionLost):
            if not reused:
                raise
        return await self._once(message)  # the idle stream had died; DHT requests may be repeated

    async def _once(self, message: Message) -> Message:
        slot = _Slot(message)
        async with self._sending:
            stream = self._stream
            if stream is None:
                stream = self._stream = await self._network.open_stream(self._peer, self._protocol)
                self._nursery.start_soon(self._read, stream, self._waiting)
            waiting = self._waiting
            waiting.append(slot)
            try:
                await stream.send([frame(message)])
            except BaseException:
                self._drop(stream)  # half a frame may be out: nothing more can follow it
                with trio.CancelScope(shield=True):
                    await stream.reset()
                raise
        try:
            await slot.done.wait()
        except trio.Cancelled:
            self._drop(stream)  # its reply would be taken for the next one's
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise
        if slot.error is not None:
            raise slot.error
        assert slot.reply is not None
        return slot.reply

    def _drop(self, stream: Stream) -> None:
        """Let `stream` take no more requests; its reader fails those that still wait on it."""
        if self._stream is stream:
            self._stream = None
            self._waiting = deque()

    async def _read(self, stream: Stream, waiting: deque[_Slot]) -> None:
        error = await self._read_replies(stream, waiting)
        self._drop(stream)
        await stream.reset()
        for slot in waiting:
            slot.error = error
            slot.done.set()
        waiting.clear()

    async def _read_replies(self, stream: Stream, waiting: deque[_Slot]) -> RemoteError:
        """Hand each reply to its request; returns why the stream can carry no more."""
        framer = Framer()
        buffer = memoryview(bytearray(READ_BYTES))
        try:
            while count := await stream.receive_into(buffer):
                for reply in framer.feed(bytes(buffer[:count])):
                    if not waiting:
                        return self._refuse("sent a DHT reply that nobody asked for")
                    slot = waiting[0]
                    if reply.kind is not slot.request.kind:
                        return self._refuse("answered another DHT question than the one asked")
                    waiting.popleft()
                    slot.reply = reply
                    slot.done.set()
        except BadMessage as error:
            return self._refuse(f"sent a malformed DHT reply: {error}")
        except RemoteError as error:
            return error
        return StreamReset(self._peer, self._protocol)

    def _refuse(self, what: str) -> RemoteError:
        return RemoteError(Code.BAD_INPUT, f"{self._peer.short} {what}", peer=self._peer.text)
