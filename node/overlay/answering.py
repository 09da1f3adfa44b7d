"""Answers the requests of others: each of their streams in order, as fast as each may ask.

What to answer is decided by `dht/holding/server.py`, who is asked to slow down by `dht/holding/limits.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import trio

from modelnet_p2p.dht.holding.limits import Limits, SlowDown, Throttle
from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.table.warmth import Warmth
from modelnet_p2p.errors import RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import MAX_MESSAGE_BYTES, SLOW_DOWN, BadMessage, Framer, Message, frame
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)

MAX_STREAMS_PER_PEER = 32  # kad streams that one peer may keep open here; ours keep one, js up to 32
MAX_STREAMS = 1024  # of all peers together; with what arrives on them less than 256 MiB
REQUEST_BYTES = 4096  # read at once: of the smallest requests a thousand, decoded before the first is served
IDLE_FACTOR = 2.0  # of `tuning.idle_stream`: a stream without a request this long is closed
IDLE_SLACK = 0.02  # of that: to move the timer at each request would cost a tenth of answering it


class Answering:
    """The serving half of one peer's overlay."""

    def __init__(
        self,
        network: Network,
        server: KadServer,
        warmth: Warmth,
        tuning: Tuning,
        wall_us: Callable[[], int],
    ) -> None:
        self.on_answered: Callable[[], None] = lambda: None  # after each request that was served; quick
        self.inbound: Counter[PeerId] = Counter()  # kad streams that are answered
        self.limits = Limits(
            Throttle(tuning.requests_per_second, tuning.requests_burst),
            Throttle(tuning.checks_per_second, tuning.checks_burst),
        )
        self._network = network
        self._server = server
        self._warmth = warmth
        self._tuning = tuning
        self._wall_us = wall_us

    async def handle(self, stream: Stream) -> None:
        """Answer one peer's requests in order, until it ends the stream or sends what is no message."""
        peer = stream.peer
        if self.inbound[peer] >= MAX_STREAMS_PER_PEER or self.inbound.total() >= MAX_STREAMS:
            log.info("DHT stream of %s refused: it has %d open", peer.short, self.inbound[peer])
            await stream.reset()
            return
        self.inbound[peer] += 1
        stream.rest()
        try:
            await self._answer(stream)
        except (BadMessage, trio.TooSlowError) as error:
            log.info("DHT stream of %s cut off: %s", peer.short, error)
            await stream.reset()
        except RemoteError as error:
            log.debug("DHT stream of %s ended: %s", peer.short, error.message)
            await stream.reset()
        finally:
            self.inbound[peer] -= 1
            if not self.inbound[peer]:
                del self.inbound[peer]

    async def _answer(self, stream: Stream) -> None:
        """Until the stream ends; raises trio.TooSlowError where it stands still, and whatever ends it."""
        framer = Framer(MAX_MESSAGE_BYTES)
        buffer = memoryview(bytearray(REQUEST_BYTES))
        group = self._network.remote_group(stream.peer)
        idle = IDLE_FACTOR * self._tuning.idle_stream
        with trio.CancelScope(deadline=trio.current_time() + idle) as scope:
            while count := await stream.receive_into(buffer):
                began = framer.pending > 0  # else what is left over now has just begun
                requests = framer.feed(bytes(buffer[:count]))
                if requests:
                    until = trio.current_time() + idle
                    if began or scope.deadline < until - idle * IDLE_SLACK:
                        scope.deadline = until
                for request in requests:
                    await self._serve(request, stream, group)
                if framer.pending and (requests or not began):
                    # for the whole of the message
                    scope.deadline = trio.current_time() + self._tuning.request_timeout
        if scope.cancelled_caught:
            raise trio.TooSlowError

    async def _serve(self, request: Message, stream: Stream, group: str | None) -> None:
        reply: Message | None
        peer, now = stream.peer, trio.current_time()
        self._warmth.on_used(peer, now)
        checks = self._server.checks(request, peer)
        match self.limits.on_request(peer, now, checks=checks, ours=request.records is not None):
            case SlowDown(retry_ms):
                kind, key = request.kind, request.key
                reply = Message(kind, key, records=(), refused=SLOW_DOWN, retry_ms=retry_ms)
            case delay:
                if delay > 0:
                    await trio.sleep(delay)
                    now = trio.current_time()
                reply = self._server.handle(request, peer, group, now, self._wall_us())
                self.on_answered()
        if reply is None:
            return
        try:
            data = frame(reply)
        except BadMessage as error:  # our fault, and not the reader's
            log.error("an answer for %s is too large: %s", peer.short, error)
            data = frame(Message(reply.kind, reply.key, records=()))
        if not stream.send_now(data):
            with trio.fail_after(self._tuning.stall_timeout):
                await stream.send([data])
