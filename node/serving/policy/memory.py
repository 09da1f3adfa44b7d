"""What this peer saw of the providers that it called, and how it ranks offers by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from modelnet_p2p.node.serving.policy.ranking import BOAST, Experience, Strangers, draw, rank
from modelnet_p2p.node.serving.policy.reasons import reasons
from modelnet_p2p.offers import Offer

T = TypeVar("T")

MAX_KNOWN_PROVIDERS = (
    1024  # whose past behaviour is remembered; who was called longest ago is forgotten first
)
CROWD_SECONDS = 5.0  # after several calls of mine at once, in which a refusal may be of my own making


class Memory:
    """`choose(n)` draws an int below n, `now()` gives monotonic seconds."""

    def __init__(self, choose: Callable[[int], int], now: Callable[[], float]) -> None:
        self._choose = choose
        self._now = now
        self._experience: dict[str, Experience] = {}
        self._strangers = Strangers()
        self._flying: dict[str, int] = {}  # calls that a provider is at; none is 0
        self._crowds: dict[str, float] = {}  # when it last was at several of mine

    def rank(self, offers: Sequence[Offer]) -> list[Offer]:
        """Best first."""
        now = self._now()
        return rank(offers, self._recall, now, self._strangers.doubt(now))

    def reasons(self, offers: Sequence[Offer]) -> list[list[str]]:
        """What moved each to its place beside what was measured just now, in words; in their order."""
        now = self._now()
        return reasons(offers, self._recall, now, self._strangers.doubt(now))

    def draw(self, ranked: Sequence[Offer]) -> list[Offer]:
        """In which order to ask them."""
        return draw(ranked, self._recall, self._now(), self._choose, self._at)

    @contextmanager
    def calling(self, offer: Offer) -> Iterator[None]:
        """A call of this offer is on its way: who asks many at once spreads them."""
        provider = offer.provider
        self._flying[provider] = self._flying.get(provider, 0) + 1
        if self._flying[provider] > 1:
            _put_last(self._crowds, provider, self._now())
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
        if offer.provider not in self._experience and _is_idle(offer):
            self._strangers.kept(self._now())
        self._of(offer).succeeded(ms)

    def failed(self, offer: Offer, *, busy: bool) -> None:
        """It could not be reached, broke off, was too slow, or refused as `busy`."""
        told = offer.load if busy and not self._crowds_around(offer.provider) else None
        if told is not None and told < BOAST and offer.provider not in self._experience:
            self._strangers.broke(self._now())
        self._of(offer).failed(self._now(), refused_at=told)

    def _crowds_around(self, provider: str) -> bool:
        """Whether calls of mine may be what fills it: what it said of its load was said before them."""
        return self._flying.get(provider, 0) > 0 or (
            self._now() - self._crowds.get(provider, float("-inf")) < CROWD_SECONDS
        )

    def _recall(self, offer: Offer) -> Experience | None:
        return self._experience.get(offer.provider)

    def _of(self, offer: Offer) -> Experience:
        return _put_last(self._experience, offer.provider, self._recall(offer) or Experience())


def _put_last(known: dict[str, T], provider: str, what: T) -> T:
    """The first ones are forgotten where there are too many."""
    known.pop(provider, None)
    if len(known) >= MAX_KNOWN_PROVIDERS:
        del known[next(iter(known))]
    known[provider] = what
    return what


def _is_idle(offer: Offer) -> bool:
    """By its own word."""
    return offer.load is not None and offer.load < BOAST
