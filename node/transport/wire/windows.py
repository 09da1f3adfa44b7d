"""How much the far side may send: windows that grow while they are what holds a transfer up.

A stream begins with yamux's 256 KiB. When its reader consumed half a window in less than `GROW_WITHIN`
round trips, the window was too small for the link, and it doubles, to 16 MiB at most, out of what the
process has for this. The same pool counts bytes that arrived and that nobody has read, and the streams that
others have open, so that crowds of both stay bounded too. No connection gets more than a share of what is
still free, so a greedy one leaves something to those that come behind it, however little they knew of it.

Source: https://github.com/hashicorp/yamux/blob/master/spec.md; the growth is libp2p's go-yamux's.
"""

from __future__ import annotations

FIRST_WINDOW = 256 * 1024  # bytes; yamux's specification: both sides assume it
MAX_WINDOW = 16 << 20  # bytes: 80 ms at 1.6 Gbit/s
GROW_WITHIN = 2  # round trips for half a window: it grows to four times what is on the way in one
POOL_BYTES = 256 << 20  # of one process; beyond it no window grows, and who does not read is cut off
OWN_TURNS = 0.0002  # seconds that both ends take for a batch of 256 KiB: no link is quicker than that
GROWTH_SHARE = 0.5  # of the pool, for grown windows: the rest is for what lies unread
MAX_INBOUND = 4096  # streams that all the others have open here: each has a task and buffers, 8 to 30 KiB
MODEST_STREAMS = 16  # that a connection may always have: what a few callers need
FREE_SHARE = 0.5  # of the growth, and of the streams, that are left: what one connection may have
MODEST_BYTES = 512 * 1024  # unread bytes that a connection may always hold: two first windows


class WindowPool:
    """What the connections of one process share: bytes by which windows grew, bytes unread, open streams."""

    __slots__ = ("_total", "grown", "held", "inbound")

    def __init__(self, total: int = POOL_BYTES) -> None:
        self._total = total
        self.grown = 0
        self.held = 0
        self.inbound = 0

    def admits(self, mine: int) -> bool:
        """Whether a connection that lets the far side have `mine` streams may let it have one more."""
        return mine < MODEST_STREAMS or mine < (MAX_INBOUND - self.inbound) * FREE_SHARE

    def grow(self, size: int, mine: int) -> bool:
        """Whether a window may grow by `size`, taken then, where its connection's have grown by `mine`."""
        free = self._total * GROWTH_SHARE - self.grown
        if size > free or mine > free * FREE_SHARE or self.crowded:
            return False
        self.grown += size
        return True

    @property
    def crowded(self) -> bool:
        """Whether so much is held that somebody must go."""
        return self.held + self.grown > self._total


class RoundTrips:
    """The round trip of one connection: the least of the last pings, for those under load wait in queues."""

    __slots__ = ("_last", "_samples")

    KEPT = 8
    AGE = 1.0  # seconds after which a transfer asks again

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._last = 0.0

    def add(self, seconds: float, now: float) -> None:
        self._samples.append(seconds)
        self._last = now
        del self._samples[: -self.KEPT]

    def wanting(self, now: float) -> bool:
        """Whether a transfer that goes on should ask again: one sample alone may be far off."""
        return len(self._samples) < self.KEPT or now - self._last > self.AGE

    @property
    def least(self) -> float | None:
        """Seconds, never below `OWN_TURNS`; None before the first ping has come back."""
        return max(OWN_TURNS, min(self._samples)) if self._samples else None


def grown(window: int, elapsed: float, round_trip: float | None) -> int:
    """The window to have from now on, when half of `window` was consumed in `elapsed` seconds."""
    if round_trip is None or window >= MAX_WINDOW or elapsed > GROW_WITHIN * round_trip:
        return window
    return min(2 * window, MAX_WINDOW)
