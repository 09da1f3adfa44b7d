"""What became of a search's offers between two looks: who appeared, changed or went.

Two numbers change all the time, the round trip and the load, and a record is signed again every hour: none of
that is news.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import Identity, OfferRecord

MISSES = 2  # looks in a row that must miss an offer: one may have asked holders that do not know it yet


class Event(StrEnum):
    APPEARED = "appeared"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Change:
    """One offer's news; of one that is gone, as it was last seen."""

    event: Event
    offer: Offer

    def to_map(self) -> dict[str, object]:
        """A line of `find --watch --json`."""
        return {"event": self.event.value, **self.offer.to_map()}


class Changes:
    """Compares each look with the one before. Holds what the last looks showed, and no more."""

    def __init__(self) -> None:
        self._known: dict[Identity, Offer] = {}
        self._missed: dict[Identity, int] = {}

    def see(self, offers: Iterable[Offer]) -> list[Change]:
        """What is new since the last look, in the order of the offers; then who went."""
        found = {offer.record.identity: offer for offer in offers}
        news = []
        for identity, offer in found.items():
            before = self._known.get(identity)
            self._known[identity] = offer
            if before is None:
                news.append(Change(Event.APPEARED, offer))
            elif _essence(before) != _essence(offer):
                news.append(Change(Event.CHANGED, offer))
        missing = [identity for identity in self._known if identity not in found]
        self._missed = {identity: self._missed.get(identity, 0) + 1 for identity in missing}
        for identity in missing:
            if self._missed[identity] >= MISSES:
                news.append(Change(Event.GONE, self._known.pop(identity)))
                del self._missed[identity]
        return news


def _essence(offer: Offer) -> tuple[OfferRecord, State]:
    """What of an offer is worth telling when it changes."""
    manifest = replace(offer.record.manifest, issued_unix=0)
    record = replace(offer.record, manifest=manifest, manifest_envelope=b"", seq=0, issued_us=0, expires_us=0)
    return record, offer.state
