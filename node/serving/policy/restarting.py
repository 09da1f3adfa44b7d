"""When a worker that died is started again: at once, and where it dies again and again, later and later.

A death soon after a start tells more of the model than of the call that it died of. After a few in a row
the model counts as down: callers are sent elsewhere at once, and do not wait for another start.
"""

from __future__ import annotations

STEADY_SECONDS = 60.0  # a life of that length was a good one: its end is the first of a new row
FIRST_DELAY = 0.25  # seconds before the second start in a row, doubled from there; the first is not delayed
MAX_DELAY = 60.0  # a start of a large model takes that long by itself
DOWN_AFTER = 3  # deaths in a row: two may be one caller's, who tried again


class Restarts:
    """Of one model. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.row = 0  # deaths one after the other, each soon after its start
        self._since: float | None = None  # when the present life began

    @property
    def is_down(self) -> bool:
        """Whether it is not worth waiting for the next start."""
        return self.row >= DOWN_AFTER

    def on_start(self, now: float) -> None:
        """It runs, with its model loaded."""
        self._since = now

    def on_death(self, now: float, *, counts: bool = True) -> float:
        """It died, or could not be started; when to start it again. Without `counts` it was ended by us."""
        steady = self._since is not None and now - self._since >= STEADY_SECONDS
        self._since = None
        if not counts:
            return now
        self.row = 1 if steady else self.row + 1
        return now + (0.0 if self.row == 1 else min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(self.row - 2, 11)))
