"""Whether the far side of a connection is still there, judged by when bytes came and went.

Silence is answered with a ping, an unanswered ping with the end: a frozen process or a vanished host is found
within `IDLE` + `ANSWER` seconds and one look of whoever drives this. Where nobody waits for it (a peer keeps
hundreds of connections only to have them) the kernels ask each other, and only whether the process there is
frozen is asked here, within `REST` + `ANSWER`. A message that has begun must go on, for all streams of the
connection wait behind it. Who never takes what we send is given up too, soon if it makes us answer meanwhile.
When we slept ourselves, which whoever drives this finds out, nobody is judged by that time.
"""

from __future__ import annotations

from dataclasses import dataclass

IDLE = 5.0  # seconds of silence before a ping
REST = 120.0  # ... where nothing is at stake: with 256 connections still two pings a second
ANSWER = 8.0  # seconds from the ping until any byte must have come: with IDLE and a look a second, below 15
BODY = 5.0  # seconds that a frame which has begun may stop for ...
BYTES_PER_SECOND = 1024  # ... beyond what it brings at this rate
TAKING = 30.0  # seconds that the far side's kernel may take nothing of what waits for it
TAKING_FLOODED = 5.0  # ... while so many answers wait that we do not read it either


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask whether it is there."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Give the connection up."""

    why: str


class Vitality:
    """Of one connection. All times are monotonic seconds."""

    __slots__ = (
        "_bytes",
        "_frames",
        "_heard",
        "_heeded",
        "_moved",
        "_pinged",
        "_said",
        "_since",
        "_written",
        "due",
    )

    def __init__(self, now: float) -> None:
        self._heard = now
        self._pinged: float | None = None  # when the ping went out that nothing was heard after
        self._since: float | None = None  # when the frame began that is coming in, None between frames
        self._frames = 0
        self._bytes = 0
        self._heeded = now  # the last sign of life that a look has seen, and ...
        self._said = 0  # ... what had been written by then
        self._written = 0
        self._moved = now  # when it last took something, or nothing waited for it
        self.due = now  # poll again then, or when something has come or gone

    def on_bytes(self, now: float, count: int, frames: int, *, inside: bool) -> None:
        """`count` bytes came; `frames` are complete since the beginning; `inside` of another one or not."""
        self._heard = now
        self._pinged = None
        if not inside:
            self._since = None
        elif self._since is None or frames != self._frames:
            self._since, self._bytes = now, 0
        else:
            self._bytes += count
        self._frames = frames

    def on_pause(self, now: float) -> None:
        """Nothing was read for a while, on our own account: start counting anew."""
        self._heard = now
        self._pinged = None
        if self._since is not None:
            self._since = now

    def on_overslept(self, now: float) -> None:
        """It was we who were not there: what came meanwhile is not read yet."""
        self.on_pause(now)
        self._moved = now

    def poll(
        self, now: float, *, written: int, waiting: bool, flooded: bool, resting: bool = False
    ) -> Ping | Dead | None:
        """What to do now; asked about once a second, but not before `due` where nothing has changed.

        It took `written` bytes in all, and more may be `waiting`; `flooded`: so much that it is not read.
        `resting`: nobody waits for anything, unless it is the answer to what was written since it was heard.
        """
        self.due = now
        if written != self._written or not waiting:
            self._written, self._moved = written, now
        elif now - self._moved >= (TAKING_FLOODED if flooded else TAKING):
            return Dead(f"it took nothing of what was sent for {now - self._moved:.0f} s")
        if self._since is not None and now - self._since > BODY + self._bytes / BYTES_PER_SECOND:
            return Dead(f"it stopped in the middle of a frame for {BODY:g} s")
        if self._pinged is not None and now - self._pinged >= ANSWER:
            return Dead(f"it was silent for {now - self._heard:.0f} s")
        if self._heeded != self._heard:
            self._heeded, self._said = self._heard, written
        silence = REST if resting and written == self._said and not waiting else IDLE
        if self._pinged is None and now - self._heard >= silence:
            self._pinged = now
            return Ping()
        if self._pinged is None and self._since is None and not waiting:
            self.due = min(self._heard + silence, now + IDLE)  # somebody may begin to wait meanwhile
        return None
