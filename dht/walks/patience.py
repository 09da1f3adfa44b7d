"""How long a walk waits for one answer."""

from __future__ import annotations


class Patience:
    """How long a walk waits for one answer, learnt from the answers of all walks.

    RFC 6298's estimate: the smoothed round trip and four deviations, dialling included. `start` holds
    until the first answer; kept within [start / 4, ceiling].
    """

    def __init__(self, start: float, ceiling: float) -> None:
        self._low, self._high = start / 4, ceiling
        self._start = start
        self._smoothed: float | None = None
        self._deviation = 0.0

    def on_round_trip(self, seconds: float) -> None:
        if self._smoothed is None:
            self._smoothed, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(seconds - self._smoothed) - self._deviation) / 4
        self._smoothed += (seconds - self._smoothed) / 8

    @property
    def seconds(self) -> float:
        if self._smoothed is None:
            return self._start
        return min(max(self._smoothed + 4 * self._deviation, self._low), self._high)
