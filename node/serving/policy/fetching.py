"""Which piece is asked of whom: the plan of a download from several holders at once.

Every holder has every piece, so none is rare: each is asked for the next one that nobody is asked for yet,
and has as many in flight as it delivers in a moment. So the fast bring much and the slow little. When
nothing is left to ask (the end game) a holder with time to spare is asked for what a slower one owes, too,
and the first to deliver it wins: one slow holder cannot hold up the whole. A holder that sends a wrong piece
is asked for nothing more. Pure: seconds come in as arguments, what to do next goes out as values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

FIRST_WINDOW = 2  # pieces in flight with a holder of whom nothing is known: one travels while one is asked
MAX_WINDOW = 16  # `pieces.MAX_ASKS`
AHEAD_SECONDS = 0.5  # as many are in flight as it delivers in this time: longer than a round trip
MAX_COPIES = 2  # of one piece, in flight at the same time: the end game costs at most a window of each holder
SMOOTHING = 0.3  # of the newest piece, in what a holder's pieces take
PATIENCE = 1.5  # times what the asked one needs at its pace: so late a piece is asked of another one
MIN_PATIENCE = 0.25  # seconds


class Fate(Enum):
    """What became of a piece that came."""

    NEW = auto()  # keep it
    DOUBLE = auto()  # another holder was faster
    UNASKED = auto()  # it was not asked of this one: the bytes of a liar or of a bug


@dataclass(slots=True)
class _Holder:
    """What is known of one holder: what it owes since when, and what a piece of it takes."""

    owes: dict[int, float] = field(default_factory=dict)  # piece -> when it was asked, oldest first
    latest: float | None = None  # when its last piece came, or it began to owe
    seconds: float | None = None  # for one piece, smoothed
    pieces: int = 0
    sent: int = 0  # bytes that were right and new
    doubles: int = 0  # bytes that another one had delivered first

    def window(self) -> int:
        if self.seconds is None:
            return FIRST_WINDOW
        return max(FIRST_WINDOW, min(MAX_WINDOW, round(AHEAD_SECONDS / max(self.seconds, 1e-4))))


@dataclass(frozen=True, slots=True)
class Share:
    """What one holder gave."""

    pieces: int
    bytes: int
    doubles: int


class Fetching:
    """The plan. Pieces are numbers, holders names; `sizes` are the pieces' bytes, `have` what is here."""

    def __init__(self, sizes: Sequence[int], have: Collection[int] = ()) -> None:
        self._sizes = sizes
        self._missing = {index for index in range(len(sizes))} - set(have)
        self.left = sum(sizes[index] for index in self._missing)  # bytes that are still to come
        self._unasked = deque(sorted(self._missing))
        self._copies: dict[int, int] = {}  # in flight, by piece
        self._holders: dict[str, _Holder] = {}
        self._gone: dict[str, _Holder] = {}  # for `shares`: they are asked for nothing more
        self.banned: set[str] = set()

    @property
    def done(self) -> bool:
        return not self._missing

    @property
    def holders(self) -> Collection[str]:
        """Who may be asked."""
        return self._holders.keys()

    def add(self, name: str) -> bool:
        """One more holder; False for one that has lied."""
        if name in self.banned:
            return False
        self._holders.setdefault(name, self._gone.pop(name, _Holder()))
        return True

    def next(self, name: str, now: float) -> int | None:
        """The piece to ask of this holder now; None: nothing, until something changes or `look_again`."""
        holder = self._holders[name]
        if len(holder.owes) >= holder.window():
            return None
        index = self._take_unasked()
        if index is None:
            index = self._overdue(name, now)
        if index is None:
            return None
        self._copies[index] = self._copies.get(index, 0) + 1
        if not holder.owes:
            holder.latest = now
        holder.owes[index] = now
        return index

    def look_again(self, name: str, now: float) -> float | None:
        """When `next` may have something for this holder although nothing changes; None: never."""
        times = [at for index, at in self._lateness(name) if self._copies.get(index, 0) < MAX_COPIES]
        return max(now, min(times)) if times else None

    def came(self, name: str, index: int, now: float) -> Fate:
        """A piece has come, and was right."""
        holder = self._holders[name]
        if self._settle(holder, index) is None:
            return Fate.UNASKED
        took = now - (now if holder.latest is None else holder.latest)
        holder.seconds = took if holder.seconds is None else _smooth(holder.seconds, took)
        holder.latest = now
        if index not in self._missing:
            holder.doubles += self._sizes[index]
            return Fate.DOUBLE
        self._missing.discard(index)
        self.left -= self._sizes[index]
        holder.pieces += 1
        holder.sent += self._sizes[index]
        return Fate.NEW

    def wrong(self, name: str) -> None:
        """It sent what was not asked for: it is dropped, and not taken again."""
        self.banned.add(name)
        self.gone(name)

    def gone(self, name: str) -> None:
        """It has died, or refuses: others are asked for what it owes. It may be added again."""
        holder = self._holders.pop(name, None)
        if holder is None:
            return
        for index in list(holder.owes):
            self._settle(holder, index)
            if index in self._missing and not self._copies.get(index):
                self._unasked.appendleft(index)
        self._gone[name] = holder

    def shares(self) -> dict[str, Share]:
        """Who gave how much, those that are gone included."""
        everybody = {**self._gone, **self._holders}
        return {name: Share(held.pieces, held.sent, held.doubles) for name, held in everybody.items()}

    def _settle(self, holder: _Holder, index: int) -> float | None:
        """When it was asked; it is owed no more. None: it was not."""
        asked = holder.owes.pop(index, None)
        if asked is not None:
            self._copies[index] -= 1
            if not self._copies[index]:
                del self._copies[index]
        return asked

    def _take_unasked(self) -> int | None:
        while self._unasked:
            index = self._unasked.popleft()
            if index in self._missing:
                return index
        return None

    def _overdue(self, name: str, now: float) -> int | None:
        """What another holder owes for so long that it pays to ask this one, too: the longest overdue."""
        late = [
            (at, index)
            for index, at in self._lateness(name)
            if at <= now and self._copies.get(index, 0) < MAX_COPIES
        ]
        return min(late)[1] if late else None

    def _lateness(self, name: str) -> list[tuple[int, float]]:
        """For each piece that others owe and this one does not: when it may be asked of this one."""
        mine = self._holders[name].owes
        pace = self._holders[name].seconds
        patience = max(MIN_PATIENCE, PATIENCE * (pace or 0.0) * (1 + len(mine)))
        return [
            (index, asked + patience)
            for other, holder in self._holders.items()
            if other != name
            for index, asked in holder.owes.items()
            if index in self._missing and index not in mine
        ]


def _smooth(old: float, new: float) -> float:
    return old + SMOOTHING * (new - old)
