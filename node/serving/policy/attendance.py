"""Whether something that is asked now and then is there, and when to ask it again.

It stays `here` through a failure or two: a server at work may be slow to answer, and to withdraw a model and
publish it again costs the network more than a call that fails. While it is away it is asked less and less
often.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Seconds, and how many failures in a row mean that it is away."""

    between: float  # two looks at what is here
    again: float  # until the first look after a failure; the soonest after any look
    failures: int
    longest: float  # between two looks at what is away


class Attendance:
    """Of one thing; away at first, and to be asked at once. `now` is in monotonic seconds."""

    def __init__(self, rhythm: Rhythm, now: float) -> None:
        self.is_here = False
        self.next_at = now
        self._rhythm = rhythm
        self._failures = 0  # in a row
        self._looked_at = float("-inf")

    def on_answer(self, now: float) -> None:
        """It is there."""
        self.is_here, self._failures, self._looked_at = True, 0, now
        self.next_at = now + self._rhythm.between

    def on_silence(self, now: float) -> None:
        """It is not, or does not work."""
        rhythm = self._rhythm
        self._failures, self._looked_at = self._failures + 1, now
        if self._failures >= rhythm.failures:
            self.is_here = False
        beyond = 0 if self.is_here else max(0, self._failures - rhythm.failures)
        self.next_at = now + min(rhythm.longest, rhythm.again * 2 ** min(beyond, 16))

    def on_doubt(self) -> None:
        """Somebody says that it does not work: it is asked soon, however many say so."""
        self.next_at = min(self.next_at, self._looked_at + self._rhythm.again)
