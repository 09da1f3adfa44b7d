"""A call by name, URI or task: finds who offers it, asks the best, moves on where that is safe."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import trio

from modelnet_p2p.errors import Code, ModelnetError, NotFound, RemoteError
from modelnet_p2p.events import Call
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.calls.client import DEADLINE_GRACE, CallClient, told_us
from modelnet_p2p.node.calls.compacting import compacted
from modelnet_p2p.node.calls.found import Found
from modelnet_p2p.node.calls.outcome import Begun, OnBegin, OnItem, Outcome, Running, collected, outcome_of
from modelnet_p2p.node.calls.target import Target, check_one_owner, other_owners
from modelnet_p2p.node.calls.together import Together
from modelnet_p2p.node.calls.tries import Tries, search_too_long
from modelnet_p2p.node.overlay.batches import Tally
from modelnet_p2p.node.owners import Owners, whole_name
from modelnet_p2p.node.serving.policy.memory import Memory
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.payload import Value
from modelnet_p2p.query import Query
from modelnet_p2p.records import OfferRecord

log = logging.getLogger(__name__)

MAX_CANDIDATES = 20  # offers that a call considers
REFRESH_SECONDS = 10.0  # for a search that nobody waits for
HINT_SECONDS = 1.0  # for the offer of a provider that a busy one named: a walk to one key, or a lie


# All that stands, best first, the dead ones too; the tally is told how the search went.
Search = Callable[[Query, Tally], Awaitable[Sequence[Offer]]]
# Why nobody offers it, by the tally of the search; it takes a part of the time that its caller has left.
Why = Callable[[Query, str, Tally], Awaitable[NotFound | None]]
# What is asked of the model that an offer describes: its input and parameters. May raise LocalError.
Fit = Callable[[Offer], tuple[Value, Mapping[str, Value]]]


@dataclass(frozen=True, slots=True)
class _Sought:
    """What a search for a target came to."""

    offers: Sequence[Offer]  # of one owner, that may be asked
    tally: Tally
    owner: PeerId | None  # that is remembered
    others: Sequence[Offer]  # those of the same name, where nobody offers that owner's


class Router:
    """Chooses providers for calls and remembers how they did."""

    def __init__(
        self,
        client: CallClient,
        search: Search,
        memory: Memory,
        owners: Owners,
        rng: random.Random,
        why: Why | None = None,
        condemned: Callable[[OfferRecord], bool] = lambda record: False,
        asked_too_much: Callable[[float], str] = lambda since: "",
        *,
        nursery: trio.Nursery,
    ) -> None:
        """Searches that no call waits for are made in `nursery`."""
        self._client = client
        self._search = search
        self._memory = memory
        self._owners = owners
        self._rng = rng
        self._why = why
        self._condemned = condemned  # whether a key that sealed it was revoked
        self._asked_too_much = asked_too_much  # by a search, in the words of those who say so
        self._nursery = nursery
        self._found = Found()
        self._seeking: Together[_Sought] = Together()

    @asynccontextmanager
    async def open(
        self,
        target: Target,
        value: Value,
        params: Mapping[str, Value],
        timeout: float,
        method: str = "invoke",
        wire: str = "",
    ) -> AsyncIterator[Running]:
        """Yield the call once a provider has begun to answer; leaving early cancels it there.

        With a `wire` (see payload.WIRES) large float tensors travel in that form, both ways.

        All of it, the search too, ends within `timeout` seconds. Raises NotFound, RemoteError (the last
        provider's, or deadline), LocalError (bad-input).
        """
        started = trio.current_time()
        until = started + timeout
        if wire:
            value, _ = await compacted(value, wire, strict=True)
        key = self._rng.randbytes(16).hex()
        tries = Tries(self, target, until)
        while (offer := await tries.next()) is not None:
            call = Call(target=offer.uri, value=value, method=method, params=params, key=key, wire=wire)
            running = None
            try:
                provider, left = offer.record.provider, until - trio.current_time()
                opened = self._client.open(provider, offer.addrs, call, left, tries.progress)
                with self._memory.calling(offer):
                    async with opened as ongoing:
                        running = Running(offer, tries.number, ongoing, await ongoing.receive(), started)
                        self._answers(target, offer)
                        self._owners.used(target.query, offer.record.owner, time.time())
                        yield running
                if running.outcome is not None:
                    self._answers(target, offer)
                    self._memory.succeeded(offer, running.outcome.total_ms)
                return
            except RemoteError as error:
                if not tries.go_on(offer, error, begun=running is not None):
                    raise
        raise tries.last

    async def call(
        self,
        target: Target,
        value: Value,
        params: Mapping[str, Value],
        timeout: float,
        on_item: OnItem | None = None,
        wire: str = "",
        *,
        on_begin: OnBegin | None = None,
        fit: Fit | None = None,
        avoid: Collection[str] = (),
        repeatable: bool = False,
    ) -> Outcome:
        """The call as a whole. Items go to `on_item`; without it a streamed answer is their list.

        `on_begin` is told once a provider has begun to answer. `fit` says what each provider is asked, in
        place of `value` and `params`, where that depends on its offer. Providers in `avoid` are not asked;
        `repeatable` says that to ask twice does no harm, whatever the offer says.

        Raises as `open` does, and RemoteError (deadline) when `on_item` takes longer than there is time.
        """
        started = trio.current_time()
        until = started + timeout
        tries = Tries(self, target, until, avoid, repeatable=repeatable)
        with trio.CancelScope(deadline=until + DEADLINE_GRACE) as scope:
            if wire and fit is None:
                value, _ = await compacted(value, wire, strict=True)
            key = self._rng.randbytes(16).hex()
            while (offer := await tries.next()) is not None:
                if fit is not None:
                    value, params = fit(offer)
                    if wire:
                        value, _ = await compacted(value, wire, strict=True)
                call = Call(
                    target=offer.uri,
                    value=value,
                    params=params,
                    deadline_us=told_us(until - trio.current_time()),
                    key=key,
                    wire=wire,
                )
                ongoing = first = None
                try:
                    with self._memory.calling(offer):
                        ongoing = await self._client.begin(
                            offer.record.provider, offer.addrs, call, until, tries.progress
                        )
                        first = await ongoing.receive()
                        self._answers(target, offer)
                        if on_begin is not None:
                            await on_begin(Begun(offer, tries.number, ongoing))
                        output, result = await collected(offer, ongoing, first, on_item)
                    outcome = outcome_of(offer, tries.number, result, output, ongoing.bytes_in, started)
                    self._answers(target, offer)
                    self._memory.succeeded(offer, outcome.total_ms)
                    self._owners.used(target.query, offer.record.owner, time.time())
                    return outcome
                except RemoteError as error:
                    if not tries.go_on(offer, error, begun=first is not None):
                        raise
                finally:
                    if ongoing is not None:
                        await self._client.leave(ongoing)
        if scope.cancelled_caught:
            raise tries.too_late(timeout)
        raise tries.last

    def recall(self, query: Query) -> Sequence[Offer] | None:
        """What the last search for the same found, if that is good and the name means the same owner."""
        offers = self._found.recall(query, trio.current_time())
        owner = self._owners.meant(query)  # also where nothing is recalled: `used` counts on it
        if not offers:
            return None
        if owner is not None and offers[0].record.owner != owner:
            return None
        if any(self._condemned(offer.record) for offer in offers):
            return None
        return self._memory.draw(offers)

    async def find(self, target: Target, until: float) -> Sequence[Offer]:
        """One owner's offers in the order in which to ask them; none where nobody offers it and no reason is
        known. Raises NotFound (with the reason, or ambiguous), RemoteError.

        The remembered owner's are asked for as such: no crowd of others of the same name can hide them.
        """
        began = trio.current_time()
        with trio.move_on_at(until):
            sought = await self._seeking.ask(target, partial(self._seek, target))
            if not sought.offers:
                await self._explain(target, sought)
            return self._memory.draw(sought.offers)
        raise search_too_long(target, self._asked_too_much(began))

    async def _seek(self, target: Target) -> _Sought:
        owner, tally = self._owners.meant(target.query), Tally()
        others: Sequence[Offer] = ()
        if owner is None:
            standing = await self._anybody_s(target.query, tally)
            offers = _living(standing)
            if offers:
                check_one_owner(target, (*offers, *standing))
        else:
            offers = _living(await self._search(replace(target.query, owner=owner), Tally()))
            if not offers:
                others = _living(await self._search(target.query, tally))
                offers = [offer for offer in others if offer.record.owner == owner]  # it came meanwhile
        if offers:
            self._found.keep(target.query, offers, trio.current_time())
        return _Sought(offers, tally, owner, others)

    async def _anybody_s(self, query: Query, tally: Tally) -> Sequence[Offer]:
        """What is found where no owner is meant yet, the dead ones too: else a name would go to whoever
        knocks the others down. Who claims the whole name is found out beside."""
        whole = whole_name(query)
        if whole is None or whole.model is None:
            return await self._search(query, tally)
        claims: list[Offer] = []

        async def look_around(whole: Query) -> None:
            claims.extend(await self._search(whole, Tally()))

        with single_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look_around, whole)
                offers = await self._search(query, tally)
        self._owners.claimed(whole.model, {offer.record.owner for offer in (*claims, *offers)})
        return offers

    def _answers(self, target: Target, offer: Offer) -> None:
        """A provider has shown that it lives."""
        if self._found.on_answer(target.query, offer, trio.current_time()):
            self._nursery.start_soon(self._refresh, target)

    async def _refresh(self, target: Target) -> None:
        """Search for what is called again and again, while nobody waits for it."""
        try:
            with trio.move_on_after(REFRESH_SECONDS):
                await self._seeking.ask(target, partial(self._seek, target))
        except ModelnetError as error:
            log.debug("%s is called, and was not found anew: %s", target.text, error.message)

    async def find_at(self, target: Target, provider: str, like: Offer) -> Offer | None:
        """What `provider` offers of the target, read under its own key and checked as any offer is.

        None unless it is the same model of the same owner as `like`: a lie costs HINT_SECONDS at most.
        """
        try:
            query = Query(network=target.query.network, provider=PeerId.parse(provider))
        except ModelnetError:
            return None
        with trio.move_on_after(HINT_SECONDS):
            for offer in _living(await self._search(query, Tally())):
                is_meant = offer.provider == provider and target.query.matches(offer.record)
                if is_meant and _is_same(offer, like) and not self._condemned(offer.record):
                    return offer
        return None

    async def _explain(self, target: Target, sought: _Sought) -> None:
        """Raises NotFound with the reason why nobody offers it, if there is one to tell; who else claims
        the name is the last."""
        if self._why is not None:
            error = await self._why(target.query, target.text, sought.tally)
            if error is not None:
                raise error
        if sought.owner is not None and sought.others:
            raise other_owners(target, sought.owner, sought.others)

    def note(self, target: Target, offer: Offer, error: RemoteError) -> None:
        """What went wrong with a call of this offer, to be remembered."""
        self._found.forget(target.query)
        if error.peer == offer.provider and error.code in (Code.UNREACHABLE, Code.DEADLINE, Code.BUSY):
            self._memory.failed(offer, busy=error.code is Code.BUSY)


def _living(standing: Sequence[Offer]) -> Sequence[Offer]:
    """Those that may be asked."""
    return [offer for offer in standing if offer.state is not State.DEAD][:MAX_CANDIDATES]


def _is_same(one: Offer, other: Offer) -> bool:
    """Whether both are of one model of one owner."""
    mine, theirs = one.record, other.record
    return (mine.owner, mine.name, mine.version, mine.digest) == (
        theirs.owner,
        theirs.name,
        theirs.version,
        theirs.digest,
    )
