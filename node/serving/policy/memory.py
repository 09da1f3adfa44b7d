"""What this peer saw of the providers that it called, and how it ranks offers by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from modelnet_p2p.node.serving.policy.ranking import BOAST, Experience, Strangers, draw, rank
from modelnet_p2p.offers import Offer

MAX_KNOWN_PROVIDERS = 1024  # whose past behaviour is remembered


class Memory:
    """`choose(n)` draws an int below n, `now()` gives monotonic seconds."""

    def __init__(self, choose: Callable[[int], int], now: Callable[[], float]) -> None:
        self._choose = choose
        self._now = now
        self._experience: dict[str, Experience] = {}
        self._strangers = Strangers()
        self._flying: dict[str, int] = {}  # calls that a provider is at; none is 0

    def rank(self, offers: Sequence[Offer]) -> list[Offer]:
        """Best first."""
        return rank(offers, self._recall, self._now(), self._strangers.doubt)

    def draw(self, ranked: Sequence[Offer]) -> list[Offer]:
        """In which order to ask them."""
        return draw(ranked, self._recall, self._now(), self._choose, self._at)

    @contextmanager
    def calling(self, offer: Offer) -> Iterator[None]:
        """A call of this offer is on its way: who asks many at once spreads them."""
        provider = offer.provider
        self._flying[provider] = self._flying.get(provider, 0) + 1
        try:
            yield
        finally:
            self._flying[provider] -= 1
            if not self._flying[provider]:
                del self._flying[provider]

    def _at(self, offer: Offer) -> int:
        return self._flying.get(offer.provider, 0)

    def succeeded(self, offer: Offer, ms: float) -> None:
        """A call of this offer took so long."""
        if self._recall(offer) is None and _is_idle(offer):
            self._strangers.kept()
        self._of(offer).succeeded(ms)

    def failed(self, offer: Offer, *, busy: bool) -> None:
        """It could not be reached, broke off, was too slow, or refused as `busy`."""
        if busy and self._recall(offer) is None and _is_idle(offer):
            self._strangers.broke()
        self._of(offer).failed(self._now(), refused_at=offer.load if busy else None)

    def _recall(self, offer: Offer) -> Experience | None:
        return self._experience.get(offer.provider)

    def _of(self, offer: Offer) -> Experience:
        if offer.provider not in self._experience and len(self._experience) >= MAX_KNOWN_PROVIDERS:
            self._experience.pop(next(iter(self._experience)))
        return self._experience.setdefault(offer.provider, Experience())


def _is_idle(offer: Offer) -> bool:
    """By its own word."""
    return offer.load is not None and offer.load < BOAST
