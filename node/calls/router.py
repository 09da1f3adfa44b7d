"""A call by name, URI or task: finds who offers it, asks the best, moves on where that is safe.

At most once per provider. Another provider is asked after `busy`, after `unreachable` before the
call was sent, and after a loss before the first item if the offer says that repeating is harmless
(`idempotent`). A call that names its provider never moves.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from modelnet_p2p.errors import Code, ModelnetError, NotFound, RemoteError
from modelnet_p2p.events import Call, Item, Result
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import ModelUri, check_task
from modelnet_p2p.node.calls.client import CallClient, Ongoing, Progress
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.node.serving.policy.ranking import Experience, draw, rank
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value
from modelnet_p2p.query import Query

log = logging.getLogger(__name__)

TASK_SCHEME = "task:"
MAX_ATTEMPTS = 5  # providers asked for one call; were all of these dead, the sixth is no better bet
FOUND_SECONDS = 2.0  # how long a search is good for calls: as long as a sign of life is believed
MAX_FOUND = 256  # searches remembered
MAX_KNOWN_PROVIDERS = 1024  # whose past behaviour is remembered
# of an answer in items that is collected into one list: a provider that never ends must not fill our memory
MAX_COLLECTED_BYTES = MAX_BODY_BYTES
MAX_COLLECTED_ITEMS = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be called: a query, and whether the call may move between providers."""

    query: Query
    text: str
    pinned: bool

    @classmethod
    def parse(cls, text: str, network: str, provider: PeerId | None = None) -> Target:
        """A model name, a `modelnet:` URI or `task:TASK`; raises LocalError (bad-input)."""
        if text.startswith(TASK_SCHEME):
            task = check_task(text.removeprefix(TASK_SCHEME))
            return cls(Query(network=network, task=task, provider=provider), text, provider is not None)
        uri = ModelUri.parse(text)
        provider = provider or uri.provider
        return cls(replace(Query.of_uri(uri, network), provider=provider), text, provider is not None)


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
    trace: tuple[dict[str, object], ...]  # a map per hop: provider, digest, bytes_in, bytes_out, ms


class Running:
    """A call that a provider has begun to answer; iterate for its items, then read `outcome`."""

    def __init__(
        self, offer: Offer, attempts: int, ongoing: Ongoing, first: Item | Result, started: float
    ) -> None:
        self.offer = offer
        self.attempts = attempts
        self.outcome: Outcome | None = None
        self._ongoing = ongoing
        self._first: Item | Result | None = first
        self._started = started

    @property
    def bytes_in(self) -> int:
        """Bytes of the answer so far."""
        return self._ongoing.bytes_in

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
        self.outcome = self._end(event)
        raise StopAsyncIteration

    def _end(self, result: Result) -> Outcome:
        hops = list(result.trace)
        if hops and hops[-1].provider == self.offer.provider:
            # it wrote its hop before it knew how long its result would be; what came is what it sent
            hops[-1] = replace(hops[-1], bytes_out=self.bytes_in)
        return Outcome(
            output=result.value,
            model=self.offer.model,
            digest=result.digest,
            provider=self.offer.provider,
            attempts=self.attempts,
            total_ms=(trio.current_time() - self._started) * 1e3,
            queue_ms=result.queue_us / 1e3,
            model_ms=result.model_us / 1e3,
            trace=tuple(
                {
                    "provider": hop.provider,
                    "digest": hop.digest,
                    "bytes_in": hop.bytes_in,
                    "bytes_out": hop.bytes_out,
                    "ms": hop.us / 1e3,
                }
                for hop in hops
            ),
        )


class Memory:
    """What this peer saw of the providers that it called; ranks offers by it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._experience: dict[str, Experience] = {}

    def rank(self, offers: Sequence[Offer]) -> list[Offer]:
        """Best first."""
        return rank(offers, self._recall, trio.current_time())

    def draw(self, ranked: Sequence[Offer]) -> list[Offer]:
        """In which order to ask them."""
        return draw(ranked, self._recall, trio.current_time(), self._rng.randrange)

    def _recall(self, offer: Offer) -> Experience | None:
        return self._experience.get(offer.provider)

    def of(self, offer: Offer) -> Experience:
        """The experience with this offer's provider, to be added to."""
        if offer.provider not in self._experience and len(self._experience) >= MAX_KNOWN_PROVIDERS:
            self._experience.pop(next(iter(self._experience)))
        return self._experience.setdefault(offer.provider, Experience())


Search = Callable[[Query], Awaitable[Sequence[Offer]]]


class Router:
    """Chooses providers for calls and remembers how they did."""

    def __init__(self, client: CallClient, search: Search, memory: Memory, rng: random.Random) -> None:
        self._client = client
        self._search = search
        self._memory = memory
        self._rng = rng
        self._found: dict[Query, tuple[float, Sequence[Offer]]] = {}

    @asynccontextmanager
    async def open(
        self,
        target: Target,
        value: Value,
        params: Mapping[str, Value],
        timeout: float,
        method: str = "invoke",
    ) -> AsyncIterator[Running]:
        """Yield the call once a provider has begun to answer; leaving early cancels it there.

        All of it, the search too, ends within `timeout` seconds. Raises NotFound, RemoteError (the last
        provider's, or deadline), LocalError (bad-input).
        """
        started = trio.current_time()
        until = started + timeout
        key = self._rng.randbytes(16).hex()
        at = f" at peer {target.query.provider}" if target.query.provider else ""
        last: ModelnetError = NotFound(  # also if the only one to be found says that it does so no more
            f"nobody alive offers {target.text!r}{at}",
            hint="modelnet-peer find --task TASK lists who offers what",
        )
        offers = self._recall(target.query)
        fresh = offers is None
        asked: set[str] = set()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if offers is None:
                offers = await self._find(target, until)
            offer = next_candidate(target, offers, asked)
            if offer is None or (attempt > 1 and trio.current_time() >= until):
                break
            asked.add(offer.provider)
            call = Call(target=offer.uri, value=value, method=method, params=params, key=key)
            progress = Progress()
            yielded = False
            try:
                provider = PeerId.parse(offer.provider)
                left = until - trio.current_time()
                async with self._client.open(provider, offer.addrs, call, left, progress) as ongoing:
                    first = await ongoing.receive()
                    running = Running(offer, attempt, ongoing, first, started)
                    yielded = True
                    yield running
                if running.outcome is not None:
                    self._memory.of(offer).succeeded(running.outcome.total_ms)
                return
            except RemoteError as error:
                if error.peer == offer.provider:  # and not out of the caller's own block
                    self._note(offer, error)
                self._found.pop(target.query, None)
                if yielded or not may_move(error, progress, offer):
                    raise
                log.info("%s did not answer %s: %s", offer.provider[-8:], target.text, error.message)
                last = last if error.code is Code.NOT_FOUND else error
                if not fresh:  # what was remembered disappoints: seek anew, also where this provider is now
                    fresh, offers = True, None
                    if not progress.sent:
                        asked.discard(offer.provider)
        raise last

    def _recall(self, query: Query) -> Sequence[Offer] | None:
        """What the last search for the same found, if that is not long ago."""
        at, offers = self._found.get(query, (float("-inf"), None))
        return (
            None if offers is None or trio.current_time() - at > FOUND_SECONDS else self._memory.draw(offers)
        )

    async def _find(self, target: Target, until: float) -> Sequence[Offer]:
        """One owner's offers in the order in which to ask them; raises NotFound (ambiguous), RemoteError."""
        with trio.move_on_at(until):
            offers = one_owner(target, await self._search(target.query))
            if len(self._found) >= MAX_FOUND:
                self._found.clear()
            if offers:
                self._found[target.query] = trio.current_time(), offers
            return self._memory.draw(offers)
        raise RemoteError(
            Code.DEADLINE,
            f"the search for {target.text!r} took longer than the call's time",
            hint="a longer timeout",
        )

    async def call(
        self,
        target: Target,
        value: Value,
        params: Mapping[str, Value],
        timeout: float,
        on_item: Callable[[Value], Awaitable[None]] | None = None,
    ) -> Outcome:
        """The call as a whole. Items go to `on_item`; without it a streamed answer is their list."""
        items: list[Value] = []
        async with self.open(target, value, params, timeout) as running:
            async for item in running:
                if on_item is not None:
                    await on_item(item)
                    continue
                items.append(item)
                if len(items) > MAX_COLLECTED_ITEMS or running.bytes_in > MAX_COLLECTED_BYTES:
                    raise _too_long(running.offer)
        assert running.outcome is not None
        empty = on_item is None and running.outcome.output is None and "items" in running.offer.record.gives
        return replace(running.outcome, output=items) if items or empty else running.outcome

    def _note(self, offer: Offer, error: RemoteError) -> None:
        if error.code in (Code.UNREACHABLE, Code.DEADLINE, Code.BUSY):
            self._memory.of(offer).failed(trio.current_time())


def next_candidate(target: Target, offers: Sequence[Offer], asked: Collection[str]) -> Offer | None:
    """The first offer of a provider that was not asked yet; a call that names its provider has but one."""
    if target.pinned and asked:
        return None
    return next((offer for offer in offers if offer.provider not in asked), None)


def may_move(error: RemoteError, progress: Progress, offer: Offer) -> bool:
    """Whether another provider may be asked after this failure without doing the work twice."""
    if error.code in (Code.BUSY, Code.NOT_FOUND):  # refused, or no longer served there: it has not begun
        return True
    if not progress.sent:  # nothing can have run there
        return True
    return error.code is Code.UNREACHABLE and progress.items == 0 and offer.record.idempotent


def _too_long(offer: Offer) -> RemoteError:
    return RemoteError(
        Code.TOO_LARGE,
        f"{offer.model} gave more than {MAX_COLLECTED_ITEMS} items or {MAX_COLLECTED_BYTES >> 20} MiB",
        peer=offer.provider,
        hint="take the items one by one: peer.stream(…), modelnet-peer invoke --stream",
    )


def one_owner(target: Target, offers: Sequence[Offer]) -> Sequence[Offer]:
    """Those offers, if they are all of one owner's model; NotFound (ambiguous) if a name has several.

    A task asks for any model, so there owners may differ.
    """
    owners = {offer.owner for offer in offers}
    if target.query.model is not None and len(owners) > 1:
        listed = ", ".join(sorted(owners))
        raise NotFound(
            f"{target.text!r} is claimed by {len(owners)} owners: {listed}",
            code=Code.AMBIGUOUS,
            hint=f"modelnet-peer invoke 'modelnet:{target.query.model}?owner={min(owners)}' …",
        )
    return offers
