"""How fast I ask each peer that has told me to slow down, so that it need not tell me often.

The peer says after how long one more request would be served; how many it serves in a second must be found
out. As in TCP's congestion control the gap between two requests grows by a factor when the peer complains,
once for all that was under way, and shrinks a little with each answer. So the pace stays close to what is
allowed, and the peer complains once in about twelve answers (the logarithm of `BACK_OFF` over `EASE`'s).

Source: Chiu and Jain: Analysis of the Increase and Decrease Algorithms for Congestion Avoidance (1989)
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from modelnet_p2p.identity import PeerId

MAX_PEERS = 1024  # whose pace is remembered, those slowed longest ago are forgotten
MIN_HOLD = 0.01  # seconds until a peer is asked again, whatever it says: none is asked without a pause
MAX_HOLD = 5.0  # ... and at most: an absurd time from a peer of ours stops nothing for good
MAX_GAP = 1.0  # seconds between two requests: slower than any preset's limit
BACK_OFF = 1.25
EASE = 0.98
FORGET = 10.0  # seconds without a complaint: by then the burst of every preset is there again


@dataclass(slots=True)
class _Pace:
    gap: float  # seconds between two requests
    free_at: float  # when the next may go
    slowed_at: float  # when it last complained


class Pacing:
    """The pace towards each peer that complained. Times are monotonic seconds."""

    def __init__(self, max_peers: int = MAX_PEERS) -> None:
        self._max_peers = max_peers
        self._paces: OrderedDict[PeerId, _Pace] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paces)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._paces

    def turn(self, peer: PeerId, now: float) -> float:
        """0 if a request may go now, and it is taken for gone; else for how many seconds not to ask again."""
        pace = self._paces.get(peer)
        if pace is None:
            return 0.0
        if now - pace.slowed_at > FORGET:
            del self._paces[peer]
            return 0.0
        if now < pace.free_at:
            return pace.free_at - now
        pace.free_at = now + pace.gap
        return 0.0

    def slow_down(self, peer: PeerId, sent: float, retry: float, now: float) -> None:
        """It refused what was sent to it at `sent`, and wants to be asked again in `retry` seconds."""
        hold = min(max(retry, MIN_HOLD), MAX_HOLD)
        pace = self._paces.pop(peer, None)
        if pace is None:
            pace = _Pace(min(hold, MAX_GAP), now, float("-inf"))
        elif sent > pace.slowed_at:  # what was under way then could not know better
            pace.gap = min(pace.gap * BACK_OFF, MAX_GAP)
        pace.free_at = max(pace.free_at, now + hold)
        pace.slowed_at = now
        self._paces[peer] = pace
        if len(self._paces) > self._max_peers:
            self._paces.popitem(last=False)

    def answered(self, peer: PeerId) -> None:
        """It served a request."""
        pace = self._paces.get(peer)
        if pace is not None:
            pace.gap *= EASE

    def complained(self, peer: PeerId, since: float) -> bool:
        """Whether it has asked to slow down since then."""
        pace = self._paces.get(peer)
        return pace is not None and pace.slowed_at >= since

    def complaining(self, since: float) -> list[PeerId]:
        """Those that have asked to slow down since then, who did so last at the end."""
        return [peer for peer, pace in self._paces.items() if pace.slowed_at >= since]
