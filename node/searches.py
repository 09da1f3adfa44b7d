"""What a search gives besides a list: offers as they are found, why they were, and how they change."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

import trio

from modelnet_p2p.changes import Change, Changes
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.node.deadlines import check_timeout
from modelnet_p2p.node.overlay.batches import Tally
from modelnet_p2p.node.overlay.finder import Finder, Search
from modelnet_p2p.node.transport.contract import Network
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.query import Query

log = logging.getLogger(__name__)

WATCH_SECONDS = 5.0  # between two looks of who says nothing else: a search is a walk and some pings
LOOK_SECONDS = 30.0  # of one look, beside the interval: a full key has hundreds of pages
MIN_WATCH_SECONDS = 0.2  # a look takes about this long
WATCH_REQUESTS_PER_S = 20.0  # on the average: what a holder on the internet serves one peer (`Tuning`)
TAGS_SECONDS = 1.5  # for a look at the tags there are, of who waits for the word that nothing was found
MAX_TAGGED = 64  # offers whose tags are looked at: a word that fewer than one in these has is no likely slip
MAX_WATCHED = 256  # offers that one watch follows; each is pinged at each look

Look = Callable[[Tally], Awaitable[Sequence[Offer] | None]]


def check_limit(limit: int) -> int:
    """How many offers are wanted; raises LocalError (bad-input) for what is no number of them."""
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise LocalError(Code.BAD_INPUT, f"limit must be a whole number of offers, from 1, not {limit!r:.40}")
    return limit


class Found:
    """Offers as they are found: `async for offer in peer.search(…)`. Nothing runs between two of them, so a
    loop may be left at any time."""

    def __init__(self, search: Search, timeout: float) -> None:
        """`timeout` is for the seconds that one step may take."""
        check_timeout(timeout)
        self._search = search
        self._timeout = timeout
        self._batch: deque[Offer] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Offer:
        """The best of what was read last; raises RemoteError (deadline, busy)."""
        if not self._batch:
            with self._search.finder.within(self._timeout):
                self._batch.extend(await anext(self._search))
        return self._batch.popleft()


class Watch:
    """News of a search, without end: `async for change in peer.watch(…)`. It looks only while it is waited
    for, and less often where a look goes through many pages."""

    def __init__(self, look: Look, interval: float) -> None:
        """`look` gives None when it could not see anything, and that is no news of anybody."""
        self._look = look
        self._interval = max(interval, MIN_WATCH_SECONDS)
        self._changes = Changes()
        self._news: deque[Change] = deque()
        self._next = -float("inf")  # trio's time

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        """The next change, however long that takes; raises LocalError (bad-input)."""
        while not self._news:
            await trio.sleep_until(self._next)
            started, tally = trio.current_time(), Tally()
            try:
                seen = await self._look(tally)
            except RemoteError as error:
                log.info("a look of a watched search failed: %s", error.message)
                continue
            finally:
                self._next = started + max(self._interval, tally.messages / WATCH_REQUESTS_PER_S)
            if seen is not None:
                self._news.extend(self._changes.see(seen))
        return self._news.popleft()


def looking(finder: Finder, network: Network, query: Query, interval: float, *, with_dead: bool) -> Look:
    """Looks for a `Watch` of `query`, each bounded by the interval and LOOK_SECONDS."""

    async def look(tally: Tally) -> Sequence[Offer] | None:
        with finder.within(interval + LOOK_SECONDS):
            offers = await finder.find(query, MAX_WATCHED, with_dead=with_dead, thorough=True, tally=tally)
        return offers if offers or network.connected() else None

    return look


async def tags_of(finder: Finder, query: Query) -> list[str]:
    """Tags of some offers that `query` means, the most frequent first; nobody is pinged for them.

    For who asked in vain: it takes a moment, and where nothing is read in that there are none.
    """
    offers: Sequence[Offer] = ()
    with trio.move_on_after(TAGS_SECONDS):
        try:
            offers = await finder.offers(query, MAX_TAGGED)
        except RemoteError as error:
            log.debug("nothing is known of the tags there: %s", error.message)
    counted = Counter(tag for offer in offers for tag in offer.record.tags)
    return [tag for tag, _ in counted.most_common()]


@dataclass(frozen=True, slots=True)
class Explained:
    """What a search found, with the reasons for each offer, and what it read besides."""

    query: Query
    offers: tuple[Offer, ...]
    tally: Tally
    moved: tuple[Sequence[str], ...]  # each of the offers to its place, beside what was measured just now

    def why(self, offer: Offer) -> list[str]:
        """The parts of the question that made it one of those found, and what decided on its place. Raises
        ValueError for one that is not among `offers`."""
        answered = any(other.state is State.ALIVE for other in self.offers)
        standing = _standing(offer, better_ones=answered)
        return [*self.query.reasons(offer.record), standing, *self.moved[self.offers.index(offer)]]

    def to_map(self) -> dict[str, object]:
        """Where was looked, how many offers were read there, and how many were ruled out by what."""
        return self.tally.to_map()


def _standing(offer: Offer, *, better_ones: bool) -> str:
    """What is known of its provider now, by which it was ranked."""
    match offer.state:
        case State.ALIVE:
            load = "" if offer.load is None else f", {offer.load:.0%} busy"
            return f"answered in {offer.rtt_ms or 0.0:.1f} ms{load}"
        case State.UNKNOWN:
            return "not asked: better ones answered" if better_ones else "not asked"
        case State.SUSPECT:
            return "does not answer now"
        case _:
            return "cannot be reached"
