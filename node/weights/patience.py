"""How long a pull waits for holders that are busy, where nobody else is left to ask.

Who is busy says so at once, and has room again as soon as another puller has what it wants. So he is asked
again, less and less often, until nothing has come for a while.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

BUSY_SECONDS = 60.0  # without a byte: then somebody else may share it, or tomorrow is a better day
FIRST_SECONDS = 0.5  # before he is asked again; then twice as long each time
LONGEST_SECONDS = 5.0


class Patience:
    """Of one pull."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        """`notice` is told that it waits, once for each time that it begins to."""
        self._notice = notice
        self._fetched = -1  # when it began to wait
        self._until = 0.0
        self._pause = FIRST_SECONDS

    async def wait(self, busy: int, fetched: int) -> bool:
        """A while, for so many holders; False if it was long enough with no byte more than `fetched`."""
        now = trio.current_time()
        if fetched > self._fetched:
            self._fetched, self._until, self._pause = fetched, now + BUSY_SECONDS, FIRST_SECONDS
            who = "the only peer that shares it is" if busy == 1 else f"the {busy} peers that share it are"
            self._notice(f"{who} busy: waiting, and asking again")
        if now >= self._until:
            return False
        await trio.sleep(min(self._pause, self._until - now))
        self._pause = min(2 * self._pause, LONGEST_SECONDS)
        return True
