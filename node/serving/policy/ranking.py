"""Whom to ask first: own experience, then what was measured, then what peers say of themselves.

Everybody who asks sees about the same numbers; were the best always taken, all would flock to one
peer and it would be the worst a second later. So among equals two are drawn and the better one
leads (the power of two random choices, Mitzenmacher 2001).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelnet_p2p.offers import Offer, State

# An alive peer is worth trying before an unknown one, and a suspect one only when nothing else is left.
_ORDER = {State.ALIVE: 0, State.UNKNOWN: 1, State.SUSPECT: 2, State.DEAD: 3}
FAILURE_MEMORY = 60.0  # seconds after which a failed call no longer counts against a provider
UNKNOWN_RTT_MS = (
    50.0  # assumed where nothing was measured: worse than a LAN, better than the far side of the earth
)


@dataclass(slots=True)
class Experience:
    """What this peer saw of one provider."""

    call_ms: float | None = None  # exponentially weighted mean of successful calls
    failed_at: float | None = None  # monotonic seconds of the last failure

    def succeeded(self, ms: float) -> None:
        self.call_ms = ms if self.call_ms is None else 0.8 * self.call_ms + 0.2 * ms
        self.failed_at = None

    def failed(self, now: float) -> None:
        self.failed_at = now

    def trusted(self, now: float) -> bool:
        return self.failed_at is None or now - self.failed_at > FAILURE_MEMORY


def rank(
    offers: Sequence[Offer],
    experience: Callable[[Offer], Experience | None],
    now: float,
    choose: Callable[[int], int],
) -> list[Offer]:
    """`offers`, best first. `choose(n)` draws an int below n; `now` is in monotonic seconds."""

    def cost(offer: Offer) -> tuple[bool, int, float]:
        known = experience(offer)
        distrusted = known is not None and not known.trusted(now)
        rtt = UNKNOWN_RTT_MS if offer.rtt_ms is None else offer.rtt_ms
        if known is not None and known.call_ms is not None:
            rtt = known.call_ms
        # a peer at load 1 has a full queue: its answer is several calls away
        return distrusted, _ORDER[offer.state], rtt * (1 + 4 * (offer.load or 0.0))

    ranked = sorted(offers, key=cost)
    peers = [offer for offer in ranked if cost(offer)[:2] == cost(ranked[0])[:2]]
    if len(peers) > 2:
        first, second = sorted((choose(len(peers)), choose(len(peers))))
        if first != second:
            ranked.insert(0, ranked.pop(first))
    return ranked
