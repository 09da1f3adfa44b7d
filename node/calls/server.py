"""Answers calls: reads one call after another from a stream, runs it, sends its items and its end.

The caller takes only from a closed table of methods. A caller that resets or loses its stream
cancels the work at once; a caller that ends cleanly is done. A call ends exactly once, with a
result or with a typed fault; after either the stream takes the next call.
"""

from __future__ import annotations

import logging

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.events import Call, Fault, Hop, Item, Result
from modelnet_p2p.exchange import RemoteProtocolError, Role
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import ModelUri, digest_text
from modelnet_p2p.node.calls.pipe import EventPipe
from modelnet_p2p.node.serving.models import Models, Served
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.payload import Value
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)

PING = "ping"
MODEL_METHODS = frozenset({"invoke", "stream"})


class CallServer:
    """The handler of the call protocol for one peer's models."""

    def __init__(self, me: PeerId, models: Models, tuning: Tuning) -> None:
        self._me = me
        self._models = models
        self._tuning = tuning
        self.malformed = 0  # streams that were cut off because their bytes made no sense

    async def handle(self, stream: Stream) -> None:
        """Serve calls on `stream` until the far side ends it; the transport guards this handler."""
        pipe = EventPipe(stream, Role.ANSWERER, self._tuning)
        error = await _Session(pipe, self).run()
        if error is None:
            return
        if isinstance(error, RemoteProtocolError) and error.code is not Code.UNREACHABLE:
            self.malformed += 1
            log.info("call stream of %s cut off: %s", stream.peer.short, error.message)
            await self._say_why(pipe, error)
        else:
            log.debug("call stream of %s ended: %s", stream.peer.short, error)
        await stream.reset()

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
        if call.method not in MODEL_METHODS:
            raise LocalError(
                Code.UNKNOWN_METHOD,
                f"no method {call.method[:64]!r}",
                hint=f"one of {', '.join(sorted(MODEL_METHODS | {PING}))}",
            )
        served = self._resolve(call.target)

        async def emit(value: Value) -> None:
            await pipe.send(Item(value))

        started = trio.current_time()
        deadline = started + self._timeout(call)
        answer = await served.run(call.method, call.value, call.params, emit, deadline)
        digest = digest_text(served.description.digest) if served.description.digest else None
        took_us = int((trio.current_time() - started) * 1e6)
        hop = Hop(self._me.text, digest, pipe.exchange.bytes_in, pipe.exchange.bytes_out, took_us)
        return Result(
            value=answer.value,
            digest=digest,
            provider=self._me.text,
            queue_us=answer.queue_us,
            model_us=answer.model_us,
            trace=(*call.trace, hop),
        )

    def _timeout(self, call: Call) -> float:
        asked = self._tuning.call_timeout if call.deadline_us is None else call.deadline_us / 1e6
        return min(asked, MAX_CALL_SECONDS)

    def _vital_signs(self) -> Value:
        """What a ping tells: per model its load, 0 (idle) to 1 (the next call would be refused)."""
        return {
            "models": {name: served.load for name, served in self._models.all().items()},
        }

    def _resolve(self, target: str) -> Served:
        uri = ModelUri.parse(target)
        served = self._models.get(uri.name, uri.version)
        if served is None:
            raise LocalError(
                Code.NOT_FOUND,
                f"peer {self._me.short} does not serve {uri.name!r}",
                hint=f"modelnet-peer find --model {uri.name}",
            )
        if uri.digest is not None and served.description.digest != uri.digest:
            raise LocalError(Code.NOT_FOUND, f"peer {self._me.short} serves {uri.name!r} with another digest")
        return served


MAX_CALL_SECONDS = 3600.0  # a slot is not held longer than this, whatever deadline a caller names


class _Session:
    """One stream's calls, one after the other, and the watch over its caller."""

    def __init__(self, pipe: EventPipe, server: CallServer) -> None:
        self._pipe = pipe
        self._server = server
        self._error: ModelnetError | trio.TooSlowError | None = None
        # one call may arrive while the last one's result is still going out; more would be a flood
        self._inbox, self._calls = trio.open_memory_channel[Call](1)

    async def run(self) -> ModelnetError | trio.TooSlowError | None:
        """Both tasks, until the caller ends the stream in order, or until what is returned ended it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, nursery.cancel_scope)
            await self._serve()
            nursery.cancel_scope.cancel()
        return self._error

    async def _read(self, both: trio.CancelScope) -> None:
        """Read for as long as the caller sends; its loss cancels the work that is done for it."""
        async with self._inbox:
            try:
                while (event := await self._pipe.receive()) is not None:
                    if isinstance(event, Call):
                        await self._inbox.send(event)
            except (ModelnetError, trio.TooSlowError) as error:
                self._error = error
                both.cancel()

    async def _serve(self) -> None:
        async for call in self._calls:
            end = await self._outcome(call)
            try:
                await self._pipe.send(end)
            except (ModelnetError, trio.TooSlowError) as error:
                self._error = error
                return

    async def _outcome(self, call: Call) -> Result | Fault:
        try:
            return await self._server.run(call, self._pipe)
        except ModelnetError as error:
            return Fault.of(error)
