"""News of a watched search: who appears, changes and goes, and what is no news."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from modelnet_p2p.changes import MISSES, Changes, Event
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import OfferRecord, Sealed


def seen(sealed: Sealed, state: State = State.ALIVE, rtt_ms: float = 1.0) -> Offer:
    assert isinstance(sealed.record, OfferRecord)
    return Offer(sealed.record, sealed.envelope, (), state, rtt_ms)


def test_an_offer_appears_changes_and_goes(
    sealed: Sealed, sealed_with: Callable[..., Sealed], now_us: int
) -> None:
    changes = Changes()
    assert [change.event for change in changes.see([seen(sealed)])] == [Event.APPEARED]
    again = sealed_with(seq=1_900_000_000_001, expires_us=now_us + 1)
    assert changes.see([seen(sealed, rtt_ms=9.0)]) == changes.see([seen(again)]) == []
    (slower,) = changes.see([seen(again, State.SUSPECT)])
    (bigger,) = changes.see([seen(sealed_with(seq=2_000_000_000_000, tier="cloud"), State.SUSPECT)])
    assert (slower.event, bigger.event) == (Event.CHANGED, Event.CHANGED)
    assert bigger.to_map()["event"] == "changed"
    assert bigger.to_map()["model"] == "acme/sentiment@2"
    for _ in range(MISSES - 1):
        assert changes.see([]) == []
    (gone,) = changes.see([])
    assert (gone.event, gone.offer) == (Event.GONE, bigger.offer)
    assert changes.see([]) == []
    assert [change.event for change in changes.see([seen(sealed)])] == [Event.APPEARED]


def test_a_look_that_missed_it_once_is_no_news(sealed: Sealed) -> None:
    changes = Changes()
    changes.see([seen(sealed)])
    for _ in range(3 * MISSES):
        assert changes.see([]) == changes.see([seen(sealed)]) == []


def test_several_models_of_one_provider_are_told_apart(
    sealed: Sealed, sealed_with: Callable[..., Sealed], offer: OfferRecord
) -> None:
    part = sealed_with(part="0-3")
    changes = Changes()
    assert [change.offer.record.part for change in changes.see([seen(sealed), seen(part)])] == ["", "0-3"]
    changes.see([seen(part)])
    (gone,) = changes.see([seen(part)])
    assert gone.offer.record == replace(offer, part="")
