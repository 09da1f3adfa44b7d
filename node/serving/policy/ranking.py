"""Whom to ask first: own experience, then what was measured, then what peers say of themselves.

What strangers say of themselves is believed as far as strangers have kept their word to this caller: one
that is told `busy` by every third who called itself idle goes to those that it knows, unless they are busier.

Everybody who asks sees about the same numbers; were the best always taken, all would flock to one
peer and it would be the worst a second later. So among equals two are drawn and the better one
leads (the power of two random choices, Mitzenmacher 2001); that is the one that would be through sooner with
what the caller itself has asked of it already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from modelnet_p2p.offers import Offer, State

# An alive peer is worth trying before an unknown one, and a suspect one only when nothing else is left.
_ORDER = {State.ALIVE: 0, State.UNKNOWN: 1, State.SUSPECT: 2, State.DEAD: 3}
FAILURE_MEMORY = 60.0  # seconds after which a failed call no longer counts against a provider
BOAST = 0.5  # who says that its load is below this and refuses as busy contradicts itself ...
BOAST_MEMORY = 1800.0  # ... which counts so long, each time BOAST_GROWTH times longer ...
BOAST_GROWTH = 4.0
MAX_BOAST_MEMORY = 2 * 3600.0  # ... up to this: as long as an offer lives
MAX_BOASTS = 8  # counted: more make no difference
MIN_STRANGERS = 2.0  # that count as met, and as having kept their word, before any is ...
MAX_STRANGERS = 64.0  # ... and that are remembered: beyond, all of them count half
UNKNOWN_RTT_MS = 50.0  # where nothing was measured: worse than a LAN, better than the far side of the earth


@dataclass(slots=True)
class Experience:
    """What this peer saw of one provider."""

    call_ms: float | None = None  # exponentially weighted mean of successful calls
    failed_at: float | None = None  # monotonic seconds of the last failure
    boasts: int = 0  # refusals of one that had said it was idle; each call that it does serve takes one back
    memory: float = FAILURE_MEMORY  # seconds for which the last failure counts

    def succeeded(self, ms: float) -> None:
        self.call_ms = ms if self.call_ms is None else 0.8 * self.call_ms + 0.2 * ms
        self.failed_at = None
        self.boasts = max(0, self.boasts - 1)

    def failed(self, now: float, *, refused_at: float | None = None) -> None:
        """`refused_at`: it refused as busy, and this was the load that it had told, if any."""
        self.failed_at = now
        self.memory = FAILURE_MEMORY
        if refused_at is not None and refused_at < BOAST:
            self.memory = min(BOAST_MEMORY * BOAST_GROWTH**self.boasts, MAX_BOAST_MEMORY)
            self.boasts = min(self.boasts + 1, MAX_BOASTS)

    def trusted(self, now: float) -> bool:
        return self.failed_at is None or now - self.failed_at > self.memory


@dataclass(slots=True)
class Strangers:
    """How those kept their word who said that they were idle, and had not been called before: what was
    BOAST_MEMORY ago counts a third. Times are monotonic seconds."""

    met: float = 0.0
    boasted: float = 0.0
    at: float = 0.0  # when both were right

    def doubt(self, now: float) -> float:
        """The share of them that will not, as far as is known; 0 to less than 1."""
        self._fade(now)
        return self.boasted / (self.met + MIN_STRANGERS)

    def kept(self, now: float) -> None:
        self._meet(now, 0.0)

    def broke(self, now: float) -> None:
        self._meet(now, 1.0)

    def _meet(self, now: float, boasted: float) -> None:
        self._fade(now)
        if self.met >= MAX_STRANGERS:
            self.met, self.boasted = self.met / 2, self.boasted / 2
        self.met += 1.0
        self.boasted += boasted

    def _fade(self, now: float) -> None:
        left = math.exp(-max(0.0, now - self.at) / BOAST_MEMORY)
        self.met, self.boasted, self.at = self.met * left, self.boasted * left, now


Recall = Callable[[Offer], Experience | None]


def rank(offers: Sequence[Offer], experience: Recall, now: float, doubt: float = 0.0) -> list[Offer]:
    """`offers`, best first; `now` is in monotonic seconds, `doubt` the share of strangers that boast.

    A provider that was called before is judged by how long its calls took, another by its round trip
    and what the fastest of the others needs for the work itself.
    """
    known = {id(offer): experience(offer) for offer in offers}
    fastest = fastest_call(known.values())

    def cost(offer: Offer) -> tuple[bool, int, float]:
        seen = known[id(offer)]
        distrusted = seen is not None and not seen.trusted(now)
        load = offer.load or 0.0
        if seen is not None and seen.call_ms is not None:
            expected = seen.call_ms
        else:
            expected = fastest + (UNKNOWN_RTT_MS if offer.rtt_ms is None else offer.rtt_ms)
            expected /= 1.0 - doubt  # asked in vain, another one has to be asked
            load = doubt + (1.0 - doubt) * load
        # a peer at load 1 has a full queue: its answer is several calls away
        return distrusted, _ORDER[offer.state], expected * (1 + 4 * load)

    return sorted(offers, key=cost)


def fastest_call(known: Iterable[Experience | None]) -> float:
    """What the fastest of those that were called needs, in milliseconds; 0 where none was."""
    return min((seen.call_ms for seen in known if seen is not None and seen.call_ms is not None), default=0.0)


def draw(
    ranked: Sequence[Offer],
    experience: Recall,
    now: float,
    choose: Callable[[int], int],
    flying: Callable[[Offer], int] = lambda offer: 0,
) -> list[Offer]:
    """In which order a caller asks: of those in the same state as the best (alive, and not failed
    lately) two are drawn, and the better one leads. `choose(n)` draws an int below n, `flying` says how many
    calls of this caller its provider is at.
    """
    order = list(ranked)
    if len(order) < 2:
        return order

    def standing(offer: Offer) -> tuple[State, bool]:
        seen = experience(offer)
        return offer.state, seen is None or seen.trusted(now)

    alike = sum(standing(offer) == standing(order[0]) for offer in order)  # all at the front: they are ranked
    if alike > 1:
        first, second = 0, 1
        if alike > 2:
            one, other = choose(alike), choose(alike - 1)
            other += other >= one
            first, second = min(one, other), max(one, other)

        def work(offer: Offer) -> float:
            seen = experience(offer)
            return (1 + flying(offer)) * (seen.call_ms if seen and seen.call_ms is not None else usual)

        times = [seen.call_ms for offer in order[:alike] if (seen := experience(offer)) is not None]
        usual = min((ms for ms in times if ms is not None), default=1.0)
        better = second if flying(order[first]) and work(order[second]) < work(order[first]) else first
        order.insert(0, order.pop(better))
    return order
