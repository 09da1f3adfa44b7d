"""Lines for the person who runs a peer, from rooms that know no terminal.

What is said before anybody listens is kept, so that a warning of the start reaches the shell that prints it;
it is logged, too, for those who open a peer from Python.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_KEPT = 32  # lines of the first seconds; the oldest make room

Notice = Callable[[str], None]  # what takes such lines, of one command or of all


def quiet(line: str) -> None:
    """Where nobody listens, the log has it."""
    log.debug("%s", line)


class Notices:
    """One peer's: many say, one listens."""

    def __init__(self) -> None:
        self._kept: deque[str] = deque(maxlen=MAX_KEPT)
        self._listener: Notice | None = None

    def say(self, line: str) -> None:
        log.info("%s", line)
        if self._listener is not None:
            self._listener(line)
        else:
            self._kept.append(line)

    def listen(self, listener: Notice) -> None:
        """Hand what was said, and all that is said from now on, to `listener`; quick, and must not raise."""
        self._listener = listener
        while self._kept:
            listener(self._kept.popleft())
