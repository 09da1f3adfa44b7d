"""Who offers what, and who of them is alive: one walk for the records, one ping for the life.

Offers come in batches (`batches`), read as long as they are wanted. The best few are then pinged at the
same time: one round trip tells who is there, how far away, and how loaded. Searches that need the same at the
same time share its walks and pings; no record is older than the question, a sign of life by two seconds.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import trio

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.events import Call
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.calls.client import CallClient
from modelnet_p2p.node.calls.server import PING
from modelnet_p2p.node.calls.together import Together
from modelnet_p2p.node.deadlines import within
from modelnet_p2p.node.overlay.batches import (
    FIRST_MODELS,
    MAX_MODELS_READ,
    READ_AHEAD,
    Batch,
    Batches,
    Tally,
    most_read,
)
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.overlay.reading import MAX_ADDRS, Reading, read_on
from modelnet_p2p.node.overlay.watching import Watching
from modelnet_p2p.node.revoking import Revoking
from modelnet_p2p.node.transport.addresses import texts
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.query import Query
from modelnet_p2p.records import OfferRecord, Refusal

log = logging.getLogger(__name__)

PAGE_BYTES = 1 << 20  # of my own store's records under one key, read at once
MAX_SOUGHT = 8  # providers of whom no holder told an address, and for whom a walk is made
PING_BODY_BYTES = 64 << 10  # an honest answer has a load for each of at most 64 models
MAX_LOADS = 256  # models of one provider whose load is remembered
MAX_PINGS = 8  # candidates pinged at the same time
PING_ROUNDS = 3  # if none of the first candidates is alive, the next ones are asked ...
MANY_PINGS = 64  # ... and after that many rounds so many at once: it is a crowd of the dead
VITAL_SECONDS = 2.0  # how old a sign of life may be when a search looks at it
MAX_VITALS = 4096  # providers whose signs of life are remembered


@dataclass(frozen=True, slots=True)
class Vital:
    """One provider's sign of life, or the lack of it."""

    state: State
    at: float  # monotonic seconds
    rtt_ms: float | None = None
    loads: dict[str, float] | None = None  # by model name


class Finder:
    """The reading side of the overlay for one peer."""

    def __init__(
        self,
        overlay: Overlay,
        publisher: Publisher,
        client: CallClient,
        rank: Callable[[Sequence[Offer]], list[Offer]],
        shuffle: Callable[[list[str]], None],
    ) -> None:
        """`shuffle` orders the shards of a full key, by chance."""
        self._overlay = overlay
        self._publisher = publisher
        self._client = client
        self._rank = rank
        self._shuffle = shuffle
        self._vitals: dict[PeerId, Vital] = {}
        self._walks: Together[Reading] = Together(age=0)
        self._seeks: Together[tuple[str, ...]] = Together(age=0)  # for peers' addresses
        self._pings: Together[Vital] = Together(age=VITAL_SECONDS)
        self.watching: Watching | None = None  # who tells of deaths that others found
        self.revoking: Revoking | None = None  # who is told of keys that others found revoked
        self.refused: dict[str, int] = {}  # bad records met while reading, by reason

    async def find(
        self,
        query: Query,
        limit: int,
        *,
        with_dead: bool = False,
        thorough: bool = False,
        tally: Tally | None = None,
    ) -> list[Offer]:
        """Offers that match, best first, at most `limit`; the dead ones only `with_dead`. As long as too few
        others are known, more is read, and as long as nobody is alive, more are pinged.

        `thorough`: not only the best few are pinged, but all.
        """
        there, dead = await self._read_on(query, limit, with_dead, thorough, tally or Tally())
        if tally is not None:
            tally.silent = len(dead)
        return there[:limit]

    async def standing(self, query: Query, limit: int, tally: Tally) -> list[Offer]:
        """All that was read for a `find` of that limit, best first, the dead ones too."""
        there, dead = await self._read_on(query, limit, False, False, tally)
        return there + dead

    async def _read_on(
        self, query: Query, limit: int, with_dead: bool, thorough: bool, tally: Tally
    ) -> tuple[list[Offer], list[Offer]]:
        """Whom `find` shows, best first, and the dead that it does not."""
        since = trio.current_time() - VITAL_SECONDS
        at_once = max(FIRST_MODELS, min(limit * READ_AHEAD, MAX_MODELS_READ))
        batches = Batches(self.read, query, limit, tally, at_once)
        there: list[Offer] = []
        dead: list[Offer] = []
        read, some, looked = 0, False, True

        async def look() -> None:
            ranked = self._rank(await self._with_signs_of_life(there, since, thorough))
            there[:] = [offer for offer in ranked if with_dead or offer.state is not State.DEAD]
            dead.extend(offer for offer in ranked if not with_dead and offer.state is State.DEAD)

        while len(there) < limit and (batch := await batches.more(some=some)) is not None:
            new = await self._with_addresses(batch)
            there += new
            read, looked = read + len(new), False
            if len(there) >= limit or read >= most_read(limit):
                await look()
                some, looked = _some(there, with_dead), True
        if not looked:
            await look()
        return there, dead

    def search(self, query: Query, limit: int, *, with_dead: bool = False) -> Search:
        """The same in batches, each as soon as it was read; raises LocalError (bad-input)."""
        return Search(self, Batches(self.read, query, limit, Tally(), FIRST_MODELS), limit, with_dead)

    async def offers(self, query: Query, limit: int, tally: Tally | None = None) -> list[Offer]:
        """Offers that match, whoever is alive; both seals of each were checked."""
        batches = Batches(self.read, query, limit, tally or Tally(), MAX_MODELS_READ)
        found: list[Offer] = []
        while len(found) < limit and (batch := await batches.more()) is not None:
            found += await self._with_addresses(batch)
        return found[: most_read(limit)]

    async def living(self, batch: Batch, with_dead: bool) -> list[Offer]:
        """The offers of a batch, best first, who of them is there."""
        offers = await self._with_addresses(batch)
        offers = await self._with_signs_of_life(offers, trio.current_time() - VITAL_SECONDS)
        return [offer for offer in self._rank(offers) if with_dead or offer.state is not State.DEAD]

    async def read(self, keys: Sequence[bytes], limit: int) -> list[Reading]:
        """Walks to all of these at once, in their order."""
        return await self._all_at_once(keys, limit, self._collect)

    async def _all_at_once(
        self,
        keys: Sequence[bytes],
        limit: int | None,
        collect: Callable[[bytes, int | None], Awaitable[Reading]],
    ) -> list[Reading]:
        walks: dict[bytes, Reading] = {}

        async def read(key: bytes) -> None:
            walks[key] = await collect(key, limit)

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(read, key)
        return [walks[key] for key in keys]

    async def _with_addresses(self, batch: Batch) -> list[Offer]:
        addrs = await self._addresses([sealed.identity.provider for sealed in batch.sealeds], batch.walks)
        known = self._overlay.server.revocations  # another walk of this search may have told of one
        return [
            Offer(sealed.record, sealed.envelope, addrs[sealed.identity.provider])
            for sealed in batch.sealeds
            if isinstance(sealed.record, OfferRecord) and known.condemning(sealed.record) is None
        ]

    async def _collect(self, key: bytes, limit: int | None) -> Reading:
        """What lies under this key, and under its shards where it is split; others may be given the same."""
        return await self._walks.ask((key, limit), partial(self._collect_all, key, limit))

    async def _collect_all(self, key: bytes, limit: int | None) -> Reading:
        (found,) = await self._collect_at([key], limit)
        await read_on(found, limit, self._shuffle, self._collect_at)
        for reason, count in found.refused.items():
            self.refused[reason.value] = self.refused.get(reason.value, 0) + count
        return found

    async def _collect_at(self, keys: Sequence[bytes], limit: int | None) -> list[Reading]:
        return await self._all_at_once(keys, limit, self._collect_one)

    async def _collect_one(self, key: bytes, limit: int | None) -> Reading:
        overlay = self._overlay
        walk = Reading(key, overlay, limit, overlay.server.revocations)
        held = overlay.server.store.page(key, b"", PAGE_BYTES)
        walk.on_local(held.sealeds, held.contacts)
        walk.on_local(self._publisher.under(key), [overlay.contact()])
        await overlay.run(walk)
        if (handover := walk.handover()) is not None:
            overlay.tell(handover)
        if self.watching is not None:
            # of those behind cards one learns where their offers are read
            offers = [sealed for sealed in walk.records if isinstance(sealed.record, OfferRecord)]
            await self.watching.learn(key, walk.ours, (offer.identity.provider for offer in offers))
        if self.revoking is not None:
            self.revoking.read(walk)
        walk.refused.update(Counter({Refusal.REVOKED: len(walk.condemned)}))
        return walk

    async def _addresses(
        self, providers: Iterable[PeerId], walks: Sequence[Reading]
    ) -> dict[PeerId, tuple[str, ...]]:
        """Text addresses of all these; those of whom no holder told any are looked up, a few of them."""
        overlay = self._overlay
        found: dict[PeerId, tuple[str, ...]] = {}
        for provider in dict.fromkeys(providers):
            if provider == overlay.me:
                found[provider] = tuple(overlay.network.addrs)
                continue
            told = dict.fromkeys(addr for walk in walks for addr in texts(walk.addresses(provider)))
            found[provider] = tuple(told)[:MAX_ADDRS] or overlay.known_addrs(provider)

        async def look_up(provider: PeerId) -> None:
            found[provider] = await self._seeks.ask(provider, partial(overlay.find_peer, provider))

        lost = [provider for provider, addrs in found.items() if not addrs and provider != overlay.me]
        with trio.move_on_after(overlay.tuning.request_timeout):
            async with trio.open_nursery() as nursery:
                for provider in lost[:MAX_SOUGHT]:
                    nursery.start_soon(look_up, provider)
        return found

    def asked_too_much(self, since: float) -> str:
        """Who has asked this peer to slow down since then, in words; empty if nobody has."""
        return self._overlay.asking.asked_too_much(since)

    def within(self, timeout: float) -> AbstractContextManager[None]:
        """A search of that many seconds; raises LocalError (bad-input), RemoteError (busy, deadline)."""
        return within(timeout, "the search", asked_too_much=self.asked_too_much)

    # --- signs of life ---

    async def _with_signs_of_life(
        self, offers: Sequence[Offer], since: float, thorough: bool = False
    ) -> list[Offer]:
        """The offers with state, round trip and load; pings the best ones, until somebody is alive, and all
        if `thorough`.

        What was known at `since` stays good until this ends, however long others are waited for. After the
        first rounds no other begins in the second half of the asker's time: who is not asked stays unknown.
        """
        began, until = trio.current_time(), trio.current_effective_deadline()
        longest = 2 * self._overlay.tuning.ping_timeout  # for a dial and an answer
        latest = min(began + (until - began) / 2, until - longest)
        for number in range(PING_ROUNDS + 1 + len(offers) // MAX_PINGS):
            if number >= PING_ROUNDS and not thorough and trio.current_time() > latest:
                break
            at_once = MAX_PINGS if thorough else pings_at_once(number)
            offers = self._rank([self._annotated(offer, since) for offer in offers])
            unknown = {o.record.provider: o.addrs for o in offers if o.state is State.UNKNOWN}
            async with trio.open_nursery() as nursery:
                for provider in list(unknown)[:at_once]:
                    nursery.start_soon(self._examine, provider, unknown[provider])
            offers = [self._annotated(offer, since) for offer in offers]
            if not unknown or (not thorough and any(offer.state is State.ALIVE for offer in offers)):
                break
        return list(offers)

    def _annotated(self, offer: Offer, since: float) -> Offer:
        """With the provider's sign of life, if that is not from before `since`."""
        vital = self._vitals.get(offer.record.provider)
        if vital is None or vital.at < since:
            record, watching = offer.record, self.watching
            dead = watching is not None and watching.is_dead(record.provider, record.issued_us)
            return replace(offer, state=State.DEAD if dead else State.UNKNOWN, rtt_ms=None, load=None)
        load = (vital.loads or {}).get(offer.record.name)
        return replace(offer, state=vital.state, rtt_ms=vital.rtt_ms, load=load)

    async def _examine(self, peer: PeerId, addrs: Sequence[str]) -> None:
        vital = await self._pings.ask((peer, tuple(addrs)), partial(self.ping, peer, addrs))
        if len(self._vitals) >= MAX_VITALS:
            self._vitals.clear()  # two seconds' worth of pings; keeping the newest would be no better
        self._vitals[peer] = vital

    def vital(self, peer: PeerId) -> Vital | None:
        """The last sign of life of this peer, however old."""
        return self._vitals.get(peer)

    async def ping(self, peer: PeerId, addrs: Sequence[str]) -> Vital:
        """One sign of life: `alive` with its round trip, `suspect` if silent, `dead` if nobody is there."""
        timeout = self._overlay.tuning.ping_timeout
        try:
            with trio.fail_after(timeout):
                if peer != self._overlay.me:
                    await self._overlay.network.connect(peer, addrs)
            started = trio.current_time()
            call = Call(target="", method=PING)
            result = await self._client.unary(peer, addrs, call, timeout, max_body=PING_BODY_BYTES)
        except trio.TooSlowError:
            return Vital(State.SUSPECT, trio.current_time())
        except RemoteError as error:
            log.debug("%s gave no sign of life: %s", peer.short, error.message)
            state = State.DEAD if error.code is Code.UNREACHABLE else State.SUSPECT
            return Vital(state, trio.current_time())
        except LocalError as error:  # told addresses that are none
            log.debug("%s cannot be dialled: %s", peer.short, error.message)
            return Vital(State.DEAD, trio.current_time())
        now = trio.current_time()
        return Vital(State.ALIVE, now, (now - started) * 1e3, _loads(result.value))


class Search:
    """What a search finds, batch by batch, for `async for`: no task runs between two of them."""

    def __init__(self, finder: Finder, batches: Batches, limit: int, with_dead: bool) -> None:
        self.finder = finder
        self._batches = batches
        self._wanted = limit
        self._some = False  # somebody was found, see `_some`
        self._with_dead = with_dead

    def __aiter__(self) -> Search:
        return self

    async def __anext__(self) -> Sequence[Offer]:
        """At least one offer, best first."""
        while self._wanted and (batch := await self._batches.more(some=self._some)) is not None:
            offers = (await self.finder.living(batch, self._with_dead))[: self._wanted]
            self._wanted -= len(offers)
            self._some = self._some or _some(offers, self._with_dead)
            if offers:
                return offers
        raise StopAsyncIteration


def pings_at_once(number: int) -> int:
    """In that round of a search, the first being 0."""
    return MAX_PINGS if number < PING_ROUNDS else MANY_PINGS


def _some(offers: Iterable[Offer], with_dead: bool) -> bool:
    """Whether these are worth ending a search for: who is unknown may be dead."""
    return any(offer.state in (State.ALIVE, State.SUSPECT) or with_dead for offer in offers)


def _loads(value: object) -> dict[str, float]:
    """The loads in a ping's answer; whatever has another form is left out."""
    models = value.get("models") if isinstance(value, dict) else None
    if not isinstance(models, dict):
        return {}
    return {
        name: min(1.0, max(0.0, float(load)))
        for name, load in islice(models.items(), MAX_LOADS)
        if isinstance(load, int | float) and not isinstance(load, bool) and load == load
    }
