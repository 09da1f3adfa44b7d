"""What endpoints share: the gateway's own state, and a call of a model with its figures and headers.

The way from the model to the socket has no buffer: an item is written before the next one is read, so a
reader that is slow slows the model down, and one that hangs up cancels it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Collection
from typing import TYPE_CHECKING

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.calls.outcome import Begun, OnBegin, OnItem, Outcome
from modelnet_p2p.node.calls.resuming import relay
from modelnet_p2p.node.calls.router import Fit
from modelnet_p2p.node.gateway.errors import BadRequest
from modelnet_p2p.node.gateway.gauges import Gauges
from modelnet_p2p.node.gateway.http import Http, Room
from modelnet_p2p.node.gateway.listing import Lists
from modelnet_p2p.node.gateway.settings import GatewaySettings
from modelnet_p2p.payload import Value

if TYPE_CHECKING:
    from modelnet_p2p.node.peer import Peer

MAX_REQUESTS = 1024  # answered at once: each is a call, two tasks and some buffers of 64 KiB
MAX_TARGET_CHARS = 1024
MAX_WHOLE_BYTES = 64 << 20  # of an answer that is put together here before it is sent
TIMEOUT_HEADER = b"x-modelnet-timeout"
_SHOWN = re.compile(r"[\x21-\x7e]*")


class Gateway:
    """One gateway: its peer, its settings, its figures, and how much it does at once."""

    def __init__(self, peer: Peer, settings: GatewaySettings) -> None:
        self.peer = peer
        self.settings = settings
        self.gauges = Gauges()
        self.room = Room()
        self.lists = Lists()
        self.leaving = False  # it is being closed
        self._running = 0

    def enter(self) -> None:
        """One more request; raises LocalError (busy) when there are too many. `leave` ends it."""
        if self._running >= MAX_REQUESTS:
            self.gauges.refused.inc()
            raise LocalError(Code.BUSY, f"the gateway answers {MAX_REQUESTS} requests already")
        self._running += 1
        self.gauges.running.set(self._running)

    def leave(self) -> None:
        self._running -= 1
        self.gauges.running.set(self._running)


class Calling:
    """One call of a model for one request."""

    def __init__(self, gateway: Gateway, http: Http, target: object, *, wire: str = "") -> None:
        """Raises BadRequest for what names no model."""
        if not isinstance(target, str) or not 0 < len(target) <= MAX_TARGET_CHARS:
            raise BadRequest("'model' must name a model, such as task:text-generation", "model")
        self.target = target
        self.wire = wire
        self.gateway = gateway
        self.http = http
        self.timeout = _timeout(http, gateway.settings.timeout)
        self.first: float | None = None  # when the first item came, in trio's time
        self.items = 0
        self._begun = 0
        self._answer: Begun | None = None

    @property
    def held(self) -> int:
        """Bytes that the answer takes so far, as it came from the provider."""
        return self._answer.bytes_held if self._answer is not None else 0

    async def run(self, fit: Fit, on_begin: OnBegin, on_item: OnItem, *, repeatable: bool = True) -> Outcome:
        """Ask whoever offers it, in the form that `fit` gives for each offer.

        `on_begin` is told once a provider has its first item; `repeatable`: that to ask again before that
        does no harm. Raises ModelnetError, and Gone when the client hangs up.
        """
        gateway = self.gateway

        def call(
            target: str, timeout: float, avoid: Collection[str], on_begin: OnBegin, on_item: OnItem
        ) -> Awaitable[Outcome]:
            self._begun += 1
            return gateway.peer.call_fitting(
                target,
                fit,
                on_begin,
                on_item,
                timeout=timeout,
                wire=self.wire,
                avoid=avoid,
                repeatable=repeatable,
            )

        async def begin(begun: Begun) -> None:
            self.first = trio.current_time()
            self._answer = begun
            await on_begin(begun)

        async def pass_on(item: Value) -> None:
            self.items += 1
            await on_item(item)

        try:
            with self.http.while_there():
                outcome = await relay(call, self.target, self.timeout, begin, pass_on)
        except ModelnetError as error:
            gateway.gauges.failure(error)
            raise
        if self._begun > 1:
            gateway.gauges.resumed.labels(gateway.gauges.name(outcome.model)).inc()
        gateway.gauges.ended(outcome.model, self.http.started, self.first, self.items, outcome.queue_ms)
        return outcome


def _timeout(http: Http, usual: float) -> float:
    text = http.header(TIMEOUT_HEADER)
    if not text:
        return usual
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise BadRequest("x-modelnet-timeout must be a number of seconds above 0")
    return seconds


def first_headers(begun: Begun) -> list[tuple[bytes, bytes]]:
    """What is known when a provider begins to answer."""
    offer = begun.offer
    return _headers(
        [
            ("peer", offer.provider),
            ("digest", offer.digest),
            ("model", offer.model),
            ("attempts", begun.attempts),
        ]
    )


def last_words(outcome: Outcome) -> dict[str, object]:
    """What is known when it has ended."""
    network = max(0.0, outcome.total_ms - outcome.queue_ms - outcome.model_ms)
    return {
        "hops": len(outcome.trace),
        "queue-ms": f"{outcome.queue_ms:.3f}",
        "network-ms": f"{network:.3f}",
        "model-ms": f"{outcome.model_ms:.3f}",
    }


def all_headers(outcome: Outcome) -> list[tuple[bytes, bytes]]:
    """Of a whole answer."""
    named = [
        ("peer", outcome.provider),
        ("digest", outcome.digest),
        ("model", outcome.model),
        ("attempts", outcome.attempts),
    ]
    return _headers([*named, *last_words(outcome).items()])


def _headers(named: list[tuple[str, object]]) -> list[tuple[bytes, bytes]]:
    """A stranger's word may be of any characters; a header's may not."""
    return [
        (f"x-modelnet-{name}".encode(), text.encode("ascii"))
        for name, value in named
        if value is not None and _SHOWN.fullmatch(text := str(value))
    ]
