"""What searches found, and for how long that is good for calls.

A search takes longer than a small call. What it found is believed for as long as any sign of life; after that
only of those who have answered a call since, which is one, too. So whoever calls again and again waits for no
search: the next one is made beside the calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelnet_p2p.offers import Offer
from modelnet_p2p.query import Query

FOUND_SECONDS = 2.0  # as long as a sign of life is believed
MAX_FOUND = 256  # searches remembered


@dataclass(slots=True)
class _Search:
    at: float
    offers: Sequence[Offer]
    answered: dict[str, float] = field(default_factory=dict)  # when these providers did so last
    is_due: bool = False  # it was of use when it was old, so it will be again


class Found:
    """The searches of one peer; all times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._searches: dict[Query, _Search] = {}

    def keep(self, query: Query, offers: Sequence[Offer], now: float) -> None:
        if len(self._searches) >= MAX_FOUND:
            self._searches.clear()
        self._searches[query] = _Search(now, offers)

    def forget(self, query: Query) -> None:
        self._searches.pop(query, None)

    def recall(self, query: Query, now: float) -> Sequence[Offer]:
        """The offers that are still good; none where it is to be searched for."""
        search = self._searches.get(query)
        if search is None:
            return ()
        if now - search.at <= FOUND_SECONDS:
            return search.offers
        since = now - FOUND_SECONDS
        alive = [o for o in search.offers if search.answered.get(o.provider, -math.inf) >= since]
        search.is_due = search.is_due or bool(alive)
        return alive

    def on_answer(self, query: Query, offer: Offer, now: float) -> bool:
        """A call of that offer is answered. Whether it is time to search anew, which is said once."""
        search = self._searches.get(query)
        if search is None or offer not in search.offers:
            return False
        search.answered[offer.provider] = now
        is_due, search.is_due = search.is_due, False
        return is_due
