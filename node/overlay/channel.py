"""One long-lived kad stream to one peer: requests go out, replies come back in the same order.

The kad protocol has no request ids; order is the only thing that ties a reply to its request. So a
request that is given up poisons the stream: it is reset, and the others that wait on it are asked once
more on a fresh one, as are those whose stream died of its own. Some stock nodes reset a kad stream that
was idle for ten seconds; that counts as nobody's failure. Every request is marked as one of ours, so a peer
of ours that is asked too fast says so, and is asked again as fast as it likes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import lru_cache

import trio

from modelnet_p2p.dht.pacing import Pacing
from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import SLOW_DOWN, BadMessage, Framer, Message, frame
from modelnet_p2p.node.transport.contract import ConnectionLost, Network, Stream, StreamReset

MAX_IN_FLIGHT = 8  # what a peer will read ahead for us; js allows 32 streams, go one request at a time
READ_BYTES = 4096  # at once: an answer with its thirty contacts; each channel holds so much
REMEMBERED = 64  # frames of requests, 4 MiB at the very worst: a walk asks all its peers the same
LINGER = 5.0  # seconds that a stock peer has to take a message and end its side


Settled = Callable[[Message | RemoteError], None]  # a reply, or why there is none; quick, and must not raise


class _Slot:
    """Where one request waits for its reply."""

    __slots__ = ("error", "first", "reply", "request", "settle", "settled", "spoilt", "until")

    def __init__(self, request: Message, settle: Callable[[_Slot], None], until: float = math.inf) -> None:
        self.request = request
        self.reply: Message | None = None
        self.error: RemoteError | None = None
        self.settled = False  # one of both is there
        self.first = False  # its stream was opened for it
        self.spoilt = False  # its stream was reset because another request was given up
        self.settle = settle  # called when it is settled
        self.until = until  # when the reader gives it up; inf: its own task does

    def end(self, reply: Message | None, error: RemoteError | None = None) -> None:
        self.reply, self.error, self.settled = reply, error, True
        self.settle(self)


class _Line:
    """The requests that wait on one stream, oldest first, and the alarm for the first of them.

    An alarm that was moved at each request and each reply would cost a tenth of both, so it is never put off:
    when it rings and nobody is late, the next one is set.
    """

    __slots__ = ("_alarm", "slots")

    def __init__(self) -> None:
        self.slots: deque[_Slot] = deque()
        self._alarm = trio.CancelScope()

    def add(self, slot: _Slot) -> None:
        self.slots.append(slot)
        self._look()

    def on_reply(self, reply: Message) -> str | None:
        """It is for the oldest request, which is settled; else what the peer has done wrong."""
        if not self.slots:
            return "sent a DHT reply that nobody asked for"
        asked = self.slots[0].request
        # stock nodes leave the key of some replies out
        if reply.kind is not asked.kind or (reply.key and reply.key != asked.key):
            return "answered another DHT question than the one asked"
        slot = self.slots.popleft()
        self._look()
        slot.end(reply)
        return None

    def alarm(self) -> trio.CancelScope:
        """Ends its block when the oldest request is late, or was answered long ago."""
        self._alarm = trio.CancelScope(deadline=self.until)
        return self._alarm

    @property
    def until(self) -> float:
        """When the oldest request is late."""
        return self.slots[0].until if self.slots else math.inf

    def _look(self) -> None:
        if self.until < self._alarm.deadline:
            self._alarm.deadline = self.until


class KadChannel:
    """Requests to `peer`; several tasks may call `request` at the same time."""

    def __init__(
        self, network: Network, peer: PeerId, protocol: str, pacing: Pacing, nursery: trio.Nursery
    ) -> None:
        self._network = network
        self._peer = peer
        self._protocol = protocol
        self._pacing = pacing
        self._nursery = nursery
        self._stream: Stream | None = None
        self._line = _Line()  # on that stream
        self._window = trio.CapacityLimiter(MAX_IN_FLIGHT)
        self._served_at = float("-inf")  # when the peer last answered what it was asked
        self.ours: bool | None = None  # whether it answered as one of ours does; None: not yet
        self._sending = trio.Lock()  # keeps the order of slots that of the frames

    async def request(
        self, message: Message, timeout: float, held: Callable[[], None] = lambda: None
    ) -> Message:
        """Send and await the reply, as often as the peer says that it is asked too fast.

        `held` is called when it cannot go out now, or was sent back; quick, and must not raise. Raises
        RemoteError within `timeout` seconds: busy where the peer serves others of our requests and has not
        come to this one, else deadline or unreachable.
        """
        began = trio.current_time()
        waited = True
        if self._window.available_tokens < 1:
            held()
        with trio.move_on_after(timeout):
            async with self._window:
                waited = False
                return await self._paced(message, held)
        serves = self._served_at >= began
        code, what = Code.DEADLINE, f"no DHT answer within {timeout:g} s"
        if self._pacing.complained(self._peer, began):
            code = Code.BUSY if serves else Code.DEADLINE  # who only complains is no better than the silent
            what = f"{self._peer.short} asks us to slow down" + ("" if serves else f": {what}")
        elif waited and serves:
            code, what = Code.BUSY, f"{self._peer.short} has {MAX_IN_FLIGHT} requests of ours to answer first"
        raise RemoteError(code, what, peer=self._peer.text, retryable=True)

    def post(self, message: Message, timeout: float, settled: Settled) -> bool:
        """The same without waiting, if it can go out now on the stream that is open; False: it cannot.

        `settled` gets the reply, or StreamReset or ConnectionLost where the request should be made once
        more, or another RemoteError. A task for each request, with a timer each, takes as much time again as
        all the rest of it.
        """
        stream = self._stream
        if stream is None or self._sending.locked() or self._peer in self._pacing:
            return False
        began = trio.current_time()

        def settle(slot: _Slot) -> None:
            self._window.release_on_behalf_of(slot)
            outcome = slot.reply if slot.error is None else slot.error
            assert outcome is not None
            if isinstance(outcome, Message):
                outcome = self._heard(outcome, began) or StreamReset(self._peer, self._protocol)
            settled(outcome)

        slot = _Slot(message, settle, began + timeout)
        sent = False
        try:
            self._window.acquire_on_behalf_of_nowait(slot)
        except trio.WouldBlock:
            return False
        try:
            sent = stream.send_now(_framed(slot.request))
        except (RemoteError, trio.ClosedResourceError):
            return False  # its reader is about to say so
        finally:
            if not sent:
                self._window.release_on_behalf_of(slot)
        if sent:
            self._line.add(slot)
        return sent

    async def notify(self, message: Message, timeout: float) -> None:
        """Send what will not be answered (ADD_PROVIDER to a stock node) on a stream of its own."""
        data = frame(message)
        with trio.move_on_after(timeout):
            async with await self._network.open_stream(self._peer, self._protocol) as stream:
                await stream.send([data])
                await stream.finish()
                with trio.move_on_after(LINGER):  # a reset now could overtake the message
                    scratch = memoryview(bytearray(1024))
                    while await stream.receive_into(scratch):
                        pass
            return
        raise RemoteError(Code.DEADLINE, "the message could not be sent in time", peer=self._peer.text)

    async def _paced(self, message: Message, held: Callable[[], None]) -> Message:
        while True:
            while (delay := self._pacing.turn(self._peer, trio.current_time())) > 0:
                held()
                await trio.sleep(delay)
            sent = trio.current_time()
            reply = self._heard(await self._attempt(message), sent)
            if reply is not None:
                return reply
            held()

    def _heard(self, reply: Message, sent: float) -> Message | None:
        """The reply to what was sent then; None where it is that we ask too fast."""
        now = trio.current_time()
        if reply.refused == SLOW_DOWN:
            self._pacing.slow_down(self._peer, sent, reply.retry_ms / 1000, now)
            return None
        self._pacing.answered(self._peer)
        self._served_at = now
        self.ours = reply.records is not None
        return reply

    async def _attempt(self, message: Message) -> Message:
        done = trio.Event()
        slot = _Slot(message, lambda _: done.set())
        try:
            return await self._once(slot, done)
        except (StreamReset, ConnectionLost):
            if slot.first and not slot.spoilt:
                raise
        again = trio.Event()
        return await self._once(_Slot(message, lambda _: again.set()), again)  # DHT requests may be repeated

    async def _once(self, slot: _Slot, done: trio.Event) -> Message:
        data = _framed(slot.request)
        async with self._sending:
            stream = self._stream
            if stream is None:
                stream = self._stream = await self._network.open_stream(self._peer, self._protocol)
                stream.rest()
                self._nursery.start_soon(self._read, stream, self._line)
                slot.first = True
            self._line.add(slot)
            sent = False
            try:
                await stream.send([data])
                sent = True
            except trio.ClosedResourceError:  # another request was given up while this one went out
                slot.spoilt = True
                raise StreamReset(self._peer, self._protocol) from None
            finally:
                if not sent:
                    await self._give_up(stream)  # half a frame may be out: nothing more can follow it
        try:
            await done.wait()
        finally:
            if not slot.settled:
                await self._give_up(stream)  # its reply would be taken for the next one's
        if slot.error is not None:
            raise slot.error
        assert slot.reply is not None
        return slot.reply

    async def _give_up(self, stream: Stream) -> None:
        self._drop(stream)
        with trio.CancelScope(shield=True):
            await stream.reset()

    def _drop(self, stream: Stream) -> None:
        """Let `stream` take no more requests; its reader fails those that still wait on it."""
        if self._stream is stream:
            self._stream = None
            self._line = _Line()

    async def _read(self, stream: Stream, line: _Line) -> None:
        """Hand each reply to its request; when the stream can carry no more, fail those that still wait."""
        error: RemoteError | None = None
        late = False
        try:
            error = await self._read_replies(stream, line)
            late = error is None
        except trio.ClosedResourceError:
            pass  # a request was given up
        self._drop(stream)
        await stream.reset()
        if late:
            what = "no DHT answer in time"
            line.slots.popleft().end(
                None, RemoteError(Code.DEADLINE, what, peer=self._peer.text, retryable=True)
            )
        while line.slots:
            slot = line.slots.popleft()
            slot.spoilt = error is None
            slot.end(None, self._again(error or StreamReset(self._peer, self._protocol)))

    async def _read_replies(self, stream: Stream, line: _Line) -> RemoteError | None:
        """Until the stream can carry no more: why, or None where the oldest request waits for too long."""
        framer = Framer()
        buffer = memoryview(bytearray(READ_BYTES))
        try:
            while line.until > trio.current_time():
                with line.alarm():
                    while count := await stream.receive_into(buffer):
                        for reply in framer.feed(bytes(buffer[:count])):
                            if (mistake := line.on_reply(reply)) is not None:
                                return self._refuse(mistake)
                    return StreamReset(self._peer, self._protocol)
        except BadMessage as error:
            return self._refuse(f"sent a malformed DHT reply: {error}")
        except RemoteError as error:
            return error
        return None

    def _refuse(self, what: str) -> RemoteError:
        return RemoteError(Code.BAD_INPUT, f"{self._peer.short} {what}", peer=self._peer.text)

    def _again(self, error: RemoteError) -> RemoteError:
        """The same error once more: one exception cannot be raised by several tasks at once."""
        match error:
            case StreamReset():
                return StreamReset(self._peer, self._protocol)
            case ConnectionLost():
                return ConnectionLost(self._peer)
        return RemoteError(error.code, error.message, retryable=error.retryable, peer=error.peer)


@lru_cache(REMEMBERED)
def _framed(message: Message) -> bytes:
    """As it goes out: as one of ours, which understands that it is asked to slow down."""
    return frame(message if message.records is not None else message._replace(records=()))
