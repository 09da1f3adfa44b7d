"""Answers calls: reads one call after another from a stream, runs it, sends its items and its end.

The caller takes only from a closed table of methods. A caller that resets or loses its stream
cancels the work at once; a caller that ends cleanly is done. A call ends exactly once, with a
result or with a typed fault; after either the stream takes the next call. A stream without a call is
kept for a while, and not at all when there are too many.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.events import Call, Fault, Hop, Item, Result
from modelnet_p2p.exchange import LocalProtocolError, RemoteProtocolError, Role
from modelnet_p2p.frames import MAX_HOPS
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import ModelUri, digest_text
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.calls.pipe import EventPipe
from modelnet_p2p.node.serving.backends.contract import METHODS, unknown_method
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.transport.contract import Stream, StreamReset
from modelnet_p2p.payload import Value
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)

PING = "ping"
UNIX_MS = "unix_ms"  # in the answer to it: what time it is there
MAX_CALL_SECONDS = 3600.0  # a slot is not held longer than this, whatever deadline a caller names
MAX_STREAMS = 4096  # of all callers together; 16 KiB of scratch each are 64 MiB
IDLE_SLACK = 1 / 64  # of that wait: how much longer it may last
IDLE_FACTOR = 2.0  # of `tuning.idle_stream`: callers of ours let go first, so no call meets a closing door


class CallServer:
    """The handler of the call protocol for one peer's models."""

    def __init__(
        self,
        me: PeerId,
        models: Models,
        tuning: Tuning,
        budget: Budget,
        *,
        max_streams: int = MAX_STREAMS,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        elsewhere: Callable[[Description], str] = lambda description: "",
    ) -> None:
        """`elsewhere` names a peer that may serve a model, too, for callers of one that is busy."""
        self._me = me
        self._models = models
        self._tuning = tuning
        self._budget = budget
        self._max_streams = max_streams
        self._wall_us = wall_us
        self._elsewhere = elsewhere
        self._sessions: dict[_Session, None] = {}  # whose last call ended first comes first
        self.malformed = 0  # streams that were cut off because their bytes made no sense

    @property
    def streams(self) -> int:
        """Call streams that are open now."""
        return len(self._sessions)

    async def handle(self, stream: Stream) -> None:
        """Serve calls on `stream` until the far side ends it; the transport guards this handler."""
        if not self._make_room():
            log.info("call stream of %s refused: all %d are busy", stream.peer.short, self._max_streams)
            await stream.reset()
            return
        pipe = EventPipe(stream, Role.ANSWERER, self._tuning, self._budget, self._place)
        session = _Session(pipe, self, self._tuning.idle_stream * IDLE_FACTOR)
        self._sessions[session] = None
        try:
            error = await session.run()
        finally:
            del self._sessions[session]
            pipe.close()
        if error is None:
            return
        if isinstance(error, RemoteProtocolError) and error.code is not Code.UNREACHABLE:
            self.malformed += 1
            log.info("call stream of %s cut off: %s", stream.peer.short, error.message)
            await self._say_why(pipe, error)
        else:
            log.debug("call stream of %s ended: %s", stream.peer.short, error)
        await stream.reset()

    def _make_room(self) -> bool:
        """Whether one more stream may be served; where all places are taken, the longest idle one goes."""
        if len(self._sessions) < self._max_streams:
            return True
        idle = next((session for session in self._sessions if session.idle), None)
        if idle is not None:
            idle.leave()
        return idle is not None

    def on_idle(self, session: _Session) -> None:
        """A call of this stream has ended."""
        del self._sessions[session]
        self._sessions[session] = None

    async def _say_why(self, pipe: EventPipe, error: ModelnetError) -> None:
        """One last fault for a caller whose bytes made no sense: without it he would never learn why."""
        with trio.move_on_after(self._tuning.frame_body_timeout):
            try:
                await pipe.send(Fault.of(error))
                await pipe.stream.finish()
            except ModelnetError as gone:
                log.debug("%s could not be told: %s", pipe.stream.peer.short, gone.message)

    async def run(self, call: Call, pipe: EventPipe) -> Result:
        """Do what `call` asks, sending its items; raises ModelnetError for whatever goes wrong."""
        if call.open_input:
            raise LocalError(Code.BAD_INPUT, "no method of this peer takes a stream of inputs")
        if call.method == PING:
            return Result(value=self._vital_signs(), provider=self._me.text)
        if call.method not in METHODS:
            raise unknown_method(call.method, METHODS | {PING})
        if len(call.trace) >= MAX_HOPS:  # before the work: its result could not be sent
            raise LocalError(Code.BAD_INPUT, f"the call has been through {len(call.trace)} peers already")
        served = self._resolve(call.target)
        if served.waits:
            pipe.take_time()

        async def emit(value: Value) -> None:
            await pipe.send(Item(value))

        started = trio.current_time()
        deadline = started + self._timeout(call)
        caller = pipe.stream.peer.text
        try:
            answer = await served.run(call.method, call.value, call.params, emit, deadline, caller)
        except LocalError as error:
            if error.code is Code.BUSY and not error.instead:
                error.instead = self._elsewhere(served.description)
            raise
        digest = digest_text(served.description.digest) if served.description.digest else None
        took_us = int((trio.current_time() - started) * 1e6)
        hop = Hop(self._me.text, digest, pipe.exchange.bytes_in, pipe.exchange.bytes_out, took_us, call.wire)
        return Result(
            value=answer.value,
            digest=digest,
            provider=self._me.text,
            queue_us=answer.queue_us,
            model_us=answer.model_us,
            trace=(*call.trace, hop),
        )

    def _place(self, size: int, fields: Mapping[str, object]) -> memoryview | None:
        """Where the model that is called would like to have its input."""
        target = fields.get("target")
        try:
            return self._resolve(target).allocate(size) if isinstance(target, str) else None
        except LocalError:  # it gets its fault when all of the call has arrived
            return None

    def _timeout(self, call: Call) -> float:
        asked = self._tuning.call_timeout if call.deadline_us is None else call.deadline_us / 1e6
        return min(asked, MAX_CALL_SECONDS)

    def _vital_signs(self) -> Value:
        """What a ping tells: per model its load, 0 (idle) to 1 (the next call would be refused); the time."""
        return {
            "models": {name: served.load for name, served in self._models.all().items()},
            UNIX_MS: self._wall_us() // 1000,
        }

    def _resolve(self, target: str) -> Served:
        uri = ModelUri.parse(target)
        served = self._models.get(uri.name, uri.version, uri.digest)
        if served is None or uri.provider not in (None, self._me):
            raise LocalError(
                Code.NOT_FOUND,
                f"peer {self._me.short} does not serve {uri.name!r}",
                hint=f"modelnet-peer find --model {uri.name}",
            )
        if uri.digest is not None and served.description.digest != uri.digest:
            raise LocalError(Code.NOT_FOUND, f"peer {self._me.short} serves {uri.name!r} with another digest")
        return served


class _Session:
    """One stream's calls, one after the other, in one task.

    While a call runs nothing is read: that its caller has left is told by the stream itself, at once, and
    cancels the work. Between two calls nothing of the last one is held: its input and its answer may be
    large, and the stream may wait for long. So each step is a method of its own, whose variables end with it.
    """

    def __init__(self, pipe: EventPipe, server: CallServer, idle_seconds: float) -> None:
        self._pipe = pipe
        self._server = server
        self._idle_seconds = idle_seconds
        self._error: ModelnetError | None = None
        self._scope = trio.CancelScope()
        self._waiting = False
        self._running = False
        self._left = False  # the caller has: nobody waits for an answer

    @property
    def idle(self) -> bool:
        """Whether it waits for a call of which nothing has arrived."""
        return self._waiting and not self._pipe.exchange.in_frame

    async def run(self) -> ModelnetError | None:
        """Until the caller ends the stream in order, or until what is returned ended it."""
        self._pipe.idle = self._scope
        self._pipe.stream.on_broken(self._on_broken)
        try:
            with self._scope:
                while await self._serve_one():
                    self._server.on_idle(self)
        except ModelnetError as error:
            self._error = self._error or error
        finally:
            self._pipe.stream.on_broken(None)
        if self._scope.cancelled_caught and self._error is None:
            self._error = LocalError(Code.DEADLINE, f"no call for {self._idle_seconds:g} s")
        return self._error

    def leave(self) -> None:
        """Give up on a stream that is idle: its place is wanted."""
        self._waiting = False
        self._end(LocalError(Code.BUSY, "its place was needed"))

    def _end(self, error: ModelnetError) -> None:
        self._error = self._error or error
        self._scope.cancel()

    def _on_broken(self) -> None:
        self._left = True
        if self._running:  # else whoever reads or sends is told
            self._end(StreamReset(self._pipe.stream.peer, self._pipe.stream.protocol))

    async def _serve_one(self) -> bool:
        """Serve the next call; False when there will be none."""
        call = await self._next_call()
        if call is None:
            return False
        size = self._pipe.received
        await self._send_end(await self._outcome(call))
        self._pipe.release(size)
        return True

    async def _next_call(self) -> Call | None:
        pipe = self._pipe
        self._bound_wait()
        self._waiting = True
        try:
            while (event := await pipe.receive()) is not None:
                if isinstance(event, Call):
                    if pipe.exchange.in_frame and not event.open_input:
                        raise pipe.exchange.refuse(Code.BAD_INPUT, "more came before the call was answered")
                    return event
                pipe.release(pipe.received)  # an item of a call that takes none: it is not kept
        finally:
            self._waiting = False
        return None

    def _bound_wait(self) -> None:
        """Moving a deadline costs more than looking at it: it is moved when it is a little too early."""
        until = trio.current_time() + self._idle_seconds
        slack = self._idle_seconds * IDLE_SLACK
        if not until <= self._scope.deadline <= until + slack:
            self._scope.deadline = until + slack

    async def _outcome(self, call: Call) -> Result | Fault:
        if self._left:
            raise StreamReset(self._pipe.stream.peer, self._pipe.stream.protocol)
        self._running = True
        try:
            return await self._server.run(call, self._pipe)
        except ModelnetError as error:
            return Fault.of(error)
        finally:
            self._running = False

    async def _send_end(self, end: Result | Fault) -> None:
        try:
            await self._pipe.send(end)
        except LocalProtocolError as error:  # an answer that cannot be sent; its reason can
            code = error.code if error.code is Code.TOO_LARGE else Code.MODEL_ERROR
            await self._pipe.send(Fault(code, f"the answer cannot be sent: {error.message}"))
