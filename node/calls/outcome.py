"""A call that a provider has begun to answer, and how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.events import Item, Result
from modelnet_p2p.node.calls.client import Ongoing
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value

# of an answer in items that is collected into one list: a provider that never ends must not fill our memory
MAX_COLLECTED_BYTES = MAX_BODY_BYTES
MAX_COLLECTED_ITEMS = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended well: what came out, from whom, after how many tries, and what it cost."""

    output: Value
    model: str
    digest: str | None
    provider: str
    attempts: int
    total_ms: float
    queue_ms: float
    model_ms: float
    trace: tuple[dict[str, object], ...]  # a map per hop: provider, digest, bytes_in, bytes_out, ms, wire


class Begun:
    """A call that a provider has begun to answer."""

    def __init__(self, offer: Offer, attempts: int, ongoing: Ongoing) -> None:
        self.offer = offer
        self.attempts = attempts
        self._ongoing = ongoing

    @property
    def bytes_in(self) -> int:
        """Bytes of the answer so far."""
        return self._ongoing.bytes_in

    @property
    def bytes_held(self) -> int:
        """What the answer so far takes here."""
        return self._ongoing.bytes_held


OnBegin = Callable[[Begun], Awaitable[None]]
OnItem = Callable[[Value], Awaitable[None]]


class Running(Begun):
    """The same, to be iterated for its items; then read `outcome`."""

    def __init__(
        self, offer: Offer, attempts: int, ongoing: Ongoing, first: Item | Result, started: float
    ) -> None:
        super().__init__(offer, attempts, ongoing)
        self.outcome: Outcome | None = None
        self._first: Item | Result | None = first
        self._started = started

    def __aiter__(self) -> Running:
        return self

    async def __anext__(self) -> Value:
        """The next item; the far side's fault, or the loss of it, is raised as RemoteError."""
        if self.outcome is not None:
            raise StopAsyncIteration
        event = self._first or await self._ongoing.receive()
        self._first = None
        if isinstance(event, Item):
            return event.value
        self.outcome = outcome_of(self.offer, self.attempts, event, event.value, self.bytes_in, self._started)
        raise StopAsyncIteration


def outcome_of(
    offer: Offer, attempts: int, result: Result, output: Value, bytes_in: int, started: float
) -> Outcome:
    """How a call of `offer`, begun at `started` (trio time), ended with a result of `bytes_in` bytes."""
    provider = offer.provider
    trace: list[dict[str, object]] = [
        {
            "provider": hop.provider,
            "digest": hop.digest,
            "bytes_in": hop.bytes_in,
            "bytes_out": hop.bytes_out,
            "ms": hop.us / 1e3,
            "wire": hop.wire,
        }
        for hop in result.trace
    ]
    if trace and trace[-1]["provider"] == provider:
        # it wrote its hop before it knew how long its result would be; what came is what it sent
        trace[-1]["bytes_out"] = bytes_in
    return Outcome(
        output=output,
        model=offer.model,
        digest=result.digest,
        provider=provider,
        attempts=attempts,
        total_ms=(trio.current_time() - started) * 1e3,
        queue_ms=result.queue_us / 1e3,
        model_ms=result.model_us / 1e3,
        trace=tuple(trace),
    )


async def collected(
    offer: Offer, ongoing: Ongoing, event: Item | Result, on_item: OnItem | None
) -> tuple[Value, Result]:
    """The output of a call whose first event has come, and its result, once that has."""
    items: list[Value] = []
    while isinstance(event, Item):
        if on_item is not None:
            await on_item(event.value)
        else:
            items.append(event.value)
            if len(items) > MAX_COLLECTED_ITEMS or ongoing.bytes_held > MAX_COLLECTED_BYTES:
                raise _too_long(offer)
        event = await ongoing.receive()
    empty = on_item is None and event.value is None and "items" in offer.record.gives
    return items if items or empty else event.value, event


def _too_long(offer: Offer) -> RemoteError:
    return RemoteError(
        Code.TOO_LARGE,
        f"{offer.model} gave more than {MAX_COLLECTED_ITEMS} items or {MAX_COLLECTED_BYTES >> 20} MiB",
        peer=offer.provider,
        hint="take the items one by one: peer.stream(…), modelnet-peer invoke --stream",
    )
