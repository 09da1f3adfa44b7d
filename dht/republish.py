"""What of mine must be told to its holders again, and when.

Holders die and newcomers take their places, so every record is stored again at an interval, and signed anew
when half of its life is over. The interval follows from how fast peers die (`dht/table/churn.py`). This
machine is only the calendar: the driver signs, stores, and says how it went. It keeps nothing on disk: after
a restart it is filled again from the peer's own state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.walks.lookup import Wait
from modelnet_p2p.records import Identity, Sealed

JITTER = 0.1  # of the interval, by the key's place: keys published together part, so no walks in bursts
GATHER = 0.25  # of the interval: what is due that soon under the same key shares the walk
FIRST_RETRY = 5.0  # seconds after a store that missed its majority, doubled each time up to the interval
NEWCOMER_DELAY = 1.0  # seconds: who joins is met by all its neighbours within one lookup
NEWCOMER_PAUSE = 10.0  # seconds between two stores for newcomers' sake: under churn they come all the time
MAX_OPEN = 4  # keys being stored at once: each is a walk of 10 requests in flight


@dataclass(frozen=True, slots=True)
class Due:
    """Store these under `key` now, and say how it went with `on_stored`."""

    key: bytes
    sealeds: tuple[Sealed, ...]


@dataclass(frozen=True, slots=True)
class Renew:
    """Half of this record's life is over: sign it anew and `add` it; asked once."""

    identity: Identity


@dataclass(slots=True)
class _Task:
    """One record under one key."""

    sealed: Sealed
    due: float
    stored: float  # when it was stored last, or told to this calendar


@dataclass(slots=True)
class _Life:
    """One record of mine: under which keys, and when it ends."""

    keys: tuple[bytes, ...]
    renew_at: float
    forget_at: float


class Republisher:
    """The calendar. All times are monotonic seconds."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._lives: dict[Identity, _Life] = {}
        self._tasks: dict[bytes, dict[Identity, _Task]] = {}
        self._open: dict[bytes, tuple[Sealed, ...]] = {}
        self._retry: dict[bytes, float] = {}  # the next delay after a failure
        self._stored: dict[bytes, float] = {}  # when a store of the key last ended
        self._again: set[bytes] = set()  # newcomers appeared while the key was being stored
        self._alone: set[bytes] = set()  # stored on nobody, for nobody was there

    def __len__(self) -> int:
        return len(self._lives)

    def pace(self, interval: float) -> None:
        """From now on store at this interval. A longer one counts from each key's next store; a shorter one
        at once: whose last store lies further back is due."""
        shorter = interval < self.interval
        self.interval = interval
        for key, tasks in self._tasks.items() if shorter else ():
            for task in tasks.values():
                task.due = min(task.due, task.stored + self._interval_of(key))

    def add(
        self,
        records: Mapping[bytes, Sealed],
        now: float,
        *,
        renew_at: float = float("inf"),
        forget_at: float = float("inf"),
        stored: bool = False,
    ) -> None:
        """One offer, or its tombstone, as one sealed record for each of its keys; replaces its predecessor.

        `stored` says that the caller has just stored it, so that it is due only in an interval.
        """
        if not records:
            return
        identity = next(iter(records.values())).identity
        self.remove(identity)
        self._lives[identity] = _Life(tuple(records), renew_at, forget_at)
        for key, sealed in records.items():
            due = now + self._interval_of(key) if stored else now
            self._tasks.setdefault(key, {})[identity] = _Task(sealed, due, now)

    def remove(self, identity: Identity) -> None:
        """Tell nobody of this any more."""
        life = self._lives.pop(identity, None)
        for key in life.keys if life else ():
            tasks = self._tasks[key]
            del tasks[identity]
            if not tasks:
                del self._tasks[key]
                self._alone.discard(key)
                self._retry.pop(key, None)
                self._stored.pop(key, None)
                self._again.discard(key)

    def poll(self, now: float) -> Due | Renew | Wait:
        """What to do next; call again until it is Wait."""
        for identity in [i for i, life in self._lives.items() if life.forget_at <= now]:
            self.remove(identity)
        until = float("inf")
        for identity, life in self._lives.items():
            if life.renew_at <= now:
                life.renew_at = float("inf")
                return Renew(identity)
            until = min(until, life.renew_at, life.forget_at)
        if len(self._open) >= MAX_OPEN:
            return Wait(until)
        for key, tasks in self._tasks.items():
            if key in self._open:
                continue
            due = min(task.due for task in tasks.values())
            if due <= now:
                return self._due(key, tasks, now)
            until = min(until, due)
        return Wait(until)

    def on_stored(self, key: bytes, now: float, *, promised: bool, alone: bool = False) -> None:
        """The store of that key ended: with its majority, without it, or with nobody there to store it."""
        sealeds = self._open.pop(key, ())
        if key in self._tasks:
            self._stored[key] = now
        tasks = self._tasks.get(key)
        if tasks is None:
            return
        delay = self._interval_of(key)
        if promised:
            self._retry.pop(key, None)
        else:
            delay = min(delay, self._retry.get(key, FIRST_RETRY))
            self._retry[key] = 2 * delay
        if key in self._again:
            self._again.discard(key)
            delay = min(delay, NEWCOMER_PAUSE)
        (self._alone.add if alone else self._alone.discard)(key)
        for sealed in sealeds:
            task = tasks.get(sealed.identity)
            if task is not None and task.sealed is sealed:  # not replaced meanwhile: that one is due as it is
                task.due, task.stored = now + delay, now

    def on_neighbour(self, now: float) -> None:
        """The first neighbour appeared: what was stored on nobody is due at once."""
        for key in self._alone:
            for task in self._tasks[key].values():
                task.due = now
        self._alone.clear()

    def on_newcomer(self, holds: Callable[[bytes], bool], now: float) -> None:
        """A peer has entered the table; keys that it should hold are told to it soon.

        `holds(key)` says whether it is among the k closest to the key. A crowd of newcomers shares one
        store: none begins earlier than NEWCOMER_DELAY after the first of them, nor than NEWCOMER_PAUSE
        after the last store of that key.
        """
        for key, tasks in self._tasks.items():
            if not holds(key):
                continue
            if key in self._open:
                self._again.add(key)
            soon = max(now + NEWCOMER_DELAY, self._stored.get(key, float("-inf")) + NEWCOMER_PAUSE)
            for task in tasks.values():
                task.due = min(task.due, soon)

    def alone(self, key: bytes) -> None:
        """The caller stored this key by itself and found nobody there."""
        if key in self._tasks:
            self._alone.add(key)

    def _due(self, key: bytes, tasks: dict[Identity, _Task], now: float) -> Due:
        soon = now + GATHER * self.interval
        sealeds = tuple(task.sealed for task in tasks.values() if task.due <= soon)
        self._open[key] = sealeds
        return Due(key, sealeds)

    def _interval_of(self, key: bytes) -> float:
        return self.interval * (1 - JITTER * (position(key) % 1024) / 1024)
