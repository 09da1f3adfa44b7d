"""How a model's latest calls went: how many a second, how long they took, how many failed in a row.

Bounded in time and number: whoever watches wants to know how it is now, and a peer lives for months. The
counts of seconds are exact at any rate; times are kept of the latest calls only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from modelnet_p2p.errors import Code

RATE_SECONDS = 10  # calls per second are the mean of so many: one slow second is not news, a slow ten are
RECENT_SECONDS = 60.0  # a call that ended longer ago says nothing of how it is now
MAX_WORDS = 200  # of the latest failure: it is a line on a screen
MAX_TIMES = 512  # calls whose times are kept: enough for a p99, 12 KiB of floats for a model
# all others are what its callers do wrong, or the crowd that they are
_MODELS_OWN = frozenset({Code.MODEL_ERROR, Code.INTERNAL})


@dataclass(frozen=True, slots=True)
class Pace:
    """Calls a second, and within how many milliseconds the half and nearly all of them were answered."""

    calls_per_s: float = 0.0
    p50_ms: float | None = None  # None: no call ended well of late
    p99_ms: float | None = None

    def to_map(self) -> dict[str, object]:
        return {
            "calls_per_s": round(self.calls_per_s, 2),
            "p50_ms": None if self.p50_ms is None else round(self.p50_ms, 3),
            "p99_ms": None if self.p99_ms is None else round(self.p99_ms, 3),
        }


class Recent:
    """The latest calls of one model. All times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.failing = 0  # calls in a row that ended by the model's own fault
        self.words = ""  # of the last of those
        self._began = now
        self._counts = [0] * RATE_SECONDS  # of the seconds up to `_second`, that one last
        self._second = int(now)
        self._times: deque[tuple[float, float]] = deque(maxlen=MAX_TIMES)  # when a call ended, what it took

    def on_answer(self, began: float, now: float) -> None:
        """A call that came at `began` has been answered."""
        self._count(now)
        self._times.append((now, now - began))
        self.failing = 0

    def on_fault(self, code: Code, words: str, now: float) -> None:
        """A call ended with a fault; it counts as a call, but not as a time."""
        self._count(now)
        if code in _MODELS_OWN:
            self.failing += 1
            self.words = words[:MAX_WORDS]

    def pace(self, now: float) -> Pace:
        return merged([self], now)

    def _count(self, now: float) -> None:
        self._turn(now)
        self._counts[-1] += 1

    def _turn(self, now: float) -> None:
        passed = min(int(now) - self._second, RATE_SECONDS)
        if passed > 0:
            self._counts = self._counts[passed:] + [0] * passed
            self._second = int(now)

    def _rate(self, now: float) -> float:
        self._turn(now)
        span = min(RATE_SECONDS - 1 + now % 1, now - self._began)  # the last of the seconds is not over yet
        return sum(self._counts) / max(span, 1.0)

    def _latest(self, now: float) -> Iterable[float]:
        return (took for ended, took in self._times if now - ended <= RECENT_SECONDS)


def merged(recents: Iterable[Recent], now: float) -> Pace:
    """The pace of several models taken together."""
    recents = list(recents)
    times = sorted(took * 1e3 for recent in recents for took in recent._latest(now))
    rate = sum(recent._rate(now) for recent in recents)
    return Pace(rate, _share(times, 0.50), _share(times, 0.99))


def _share(times: list[float], share: float) -> float | None:
    """The smallest of the sorted `times` that at least this share of them does not exceed."""
    return times[math.ceil(share * len(times)) - 1] if times else None
