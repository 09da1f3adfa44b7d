"""What of mine must be told to its holders again, and when.

Holders die and newcomers take their places, so every record is stored again at an interval, and signed anew
when half of its life is over. The interval follows from how fast peers die (`dht/table/churn.py`). What was
stored for the first time is stored again sooner: who has just come knows few yet, and who was too busy to
answer then was passed over. This machine is only the calendar: the driver signs, stores, and says how it
went. It keeps nothing on disk: after a restart it is filled again from the peer's own state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.table.churn import SLOWEST
from modelnet_p2p.dht.walks.lookup import Wait
from modelnet_p2p.records import Identity, Sealed

JITTER = 0.1  # of the interval, by the key's place: keys published together part, so no walks in bursts
GATHER = 0.25  # of the interval: what is due that soon under the same key shares the walk
FIRST_AGAIN = 60.0  # seconds after the first store of a key, doubled each time up to the interval
FIRST_RETRY = 5.0  # seconds after a store that missed its majority, doubled each time up to the interval
RENEWED_WITH = 60.0  # seconds: whose half life is over that soon is signed anew with whom it is now
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
    """Half of the life of these records is over: sign them anew and `add` each; asked once."""

    identities: tuple[Identity, ...]


@dataclass(slots=True)
class _Task:
    """One record under one key."""

    sealed: Sealed
    due: float
    stored: float  # when it was stored last, or told to this calendar
    again: float = FIRST_AGAIN  # the next delay after a store that kept its promise, up to the interval


@dataclass(slots=True)
class _Key:
    """One key of mine, while a record of mine lies there."""

    tasks: dict[Identity, _Task] = field(default_factory=dict)
    stored: float = -inf  # when a store of it last ended
    retry: float = FIRST_RETRY  # the next delay after a store that missed its promise
    hurried: bool = False  # newcomers appeared while it was being stored
    alone: bool = False  # stored on nobody, for nobody was there

    def due(self) -> float:
        return min(task.due for task in self.tasks.values())


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
        self._keys: dict[bytes, _Key] = {}
        self._open: dict[bytes, tuple[Sealed, ...]] = {}

    def __len__(self) -> int:
        return len(self._lives)

    def pace(self, interval: float) -> None:
        """From now on store at this interval. A longer one counts from each key's next store; a shorter one
        at once: whose last store lies further back is due."""
        shorter = interval < self.interval
        self.interval = interval
        for name, key in self._keys.items() if shorter else ():
            for task in key.tasks.values():
                task.due = min(task.due, task.stored + _jittered(name, interval))

    def add(
        self,
        records: Mapping[bytes, Sealed],
        now: float,
        *,
        renew_at: float = inf,
        forget_at: float = inf,
        stored: bool = False,
    ) -> None:
        """One offer, or its tombstone, as one sealed record for each of its keys; replaces its predecessor.

        `stored` says that the caller has just stored it, so that it is due only in a while.
        """
        if not records:
            return
        identity = next(iter(records.values())).identity
        known = {name: self._keys[name] for name in records if name in self._keys}
        before = {name: key.tasks[identity] for name, key in known.items() if identity in key.tasks}
        self.remove(identity)
        self._keys |= known
        self._lives[identity] = _Life(tuple(records), renew_at, forget_at)
        for name, sealed in records.items():
            task = _Task(sealed, now, now, before[name].again if name in before else FIRST_AGAIN)
            if stored:
                self._on_promised(name, task, now)
            self._keys.setdefault(name, _Key()).tasks[identity] = task

    def remove(self, identity: Identity) -> None:
        """Tell nobody of this any more."""
        life = self._lives.pop(identity, None)
        for name in life.keys if life else ():
            key = self._keys[name]
            del key.tasks[identity]
            if not key.tasks:
                del self._keys[name]

    def poll(self, now: float) -> Due | Renew | Wait:
        """What to do next; call again until it is Wait."""
        for identity in [i for i, life in self._lives.items() if life.forget_at <= now]:
            self.remove(identity)
        until = min((min(life.renew_at, life.forget_at) for life in self._lives.values()), default=inf)
        if any(life.renew_at <= now for life in self._lives.values()):
            over = {i: life for i, life in self._lives.items() if life.renew_at <= now + RENEWED_WITH}
            for life in over.values():
                life.renew_at = inf
            return Renew(tuple(over))
        if len(self._open) >= MAX_OPEN:
            return Wait(until)
        for name, key in self._keys.items():
            if name in self._open:
                continue
            if key.due() <= now:
                return self._due(name, key, now)
            until = min(until, key.due())
        return Wait(until)

    def on_stored(self, name: bytes, now: float, *, promised: bool, alone: bool = False) -> None:
        """The store of that key ended: with its majority, without it, or with nobody there to store it."""
        sealeds = self._open.pop(name, ())
        key = self._keys.get(name)
        if key is None:
            return
        key.stored, key.alone = now, alone
        tasks = [task for sealed in sealeds if (task := key.tasks.get(sealed.identity)) is not None]
        retry = now + min(key.retry, _jittered(name, self.interval))
        key.retry = FIRST_RETRY if promised else 2 * key.retry
        for task in tasks:
            if task.sealed not in sealeds:  # replaced meanwhile: due as it is
                continue
            if promised:
                self._on_promised(name, task, now)
            else:
                task.due, task.stored = retry, now
            if key.hurried:
                task.due = min(task.due, now + NEWCOMER_PAUSE)
        key.hurried = False

    def on_neighbour(self, now: float) -> None:
        """The first neighbour appeared: what was stored on nobody is due at once."""
        for key in self._keys.values():
            for task in key.tasks.values() if key.alone else ():
                task.due = now
            key.alone = False

    def on_newcomer(self, holds: Callable[[bytes], bool], now: float) -> None:
        """A peer has entered the table; keys that it should hold are told to it soon.

        `holds(key)` says whether it is among the k closest to the key. A crowd of newcomers shares one
        store: none begins earlier than NEWCOMER_DELAY after the first of them, nor than NEWCOMER_PAUSE
        after the last store of that key.
        """
        for name, key in self._keys.items():
            if not holds(name):
                continue
            key.hurried = key.hurried or name in self._open
            soon = max(now + NEWCOMER_DELAY, key.stored + NEWCOMER_PAUSE)
            for task in key.tasks.values():
                task.due = min(task.due, soon)

    def alone(self, name: bytes) -> None:
        """The caller stored this key by itself and found nobody there."""
        if name in self._keys:
            self._keys[name].alone = True

    def _due(self, name: bytes, key: _Key, now: float) -> Due:
        soon = now + GATHER * self.interval
        sealeds = tuple(task.sealed for task in key.tasks.values() if task.due <= soon)
        self._open[name] = sealeds
        return Due(name, sealeds)

    def _on_promised(self, name: bytes, task: _Task, now: float) -> None:
        task.due, task.stored = now + _jittered(name, min(task.again, self.interval)), now
        task.again = min(2 * task.again, SLOWEST)


def _jittered(name: bytes, seconds: float) -> float:
    return seconds * (1 - JITTER * (position(name) % 1024) / 1024)
