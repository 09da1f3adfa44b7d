"""How fast the far side of a connection may open streams only to reset them.

A reset frees the stream's place at once, so no bound on open streams holds back who opens and resets without
end, and each costs us a handler that begins and ends (CVE-2023-44487, there of HTTP/2). A caller who cancels
does the same, rarely so often. So nobody is cut off for it: who resets too fast is read more slowly. What
was answered before it was reset does not count: to wait for answers is to keep our pace.
"""

from __future__ import annotations

RATE = 500.0  # a second: at three tenths of a millisecond each, a seventh of one core
BURST = 1000.0  # at once: all calls that a caller may have open, given up together, twice
MAX_DELAY = 1.0  # seconds: pings of the far side's are answered at least as often, however deep in debt it is


class RapidResets:
    """A token bucket of one connection. Times are monotonic seconds."""

    __slots__ = ("_at", "_seen", "_tokens")

    def __init__(self, now: float) -> None:
        self._tokens = BURST
        self._at = now
        self._seen = 0

    def delay(self, resets: int, now: float) -> float:
        """Seconds to wait before the next read, when there were so many `resets` since the beginning."""
        self._tokens = min(BURST, self._tokens + (now - self._at) * RATE) - (resets - self._seen)
        self._at, self._seen = now, resets
        return min(MAX_DELAY, max(0.0, -self._tokens / RATE))
