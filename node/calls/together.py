"""One search for all that want the same at the same time.

A crowd that begins at once would otherwise make a crowd of walks, and the holders of the records rightly
refuse most of them: all would wait for what one walk tells.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable
from copy import copy
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from modelnet_p2p.errors import ModelnetError

T = TypeVar("T")
Search = Callable[[], Awaitable[T]]

# Searches for one key under way, where who comes during one needs another: with a round trip of 0.1 s two ask
# each holder 20 times a second, which is what it serves on the internet; and a slow one holds up nobody yet.
ROUNDS = 2


@dataclass(slots=True)
class _Round(Generic[T]):
    """A search, and those who wait for what it gives: one of them makes it."""

    began: float = math.inf
    made: bool = False  # by one who is at it
    over: bool = False
    changed: trio.Event = field(default_factory=trio.Event)  # one of these is not what it was
    found: T | ModelnetError | None = None  # once it is over


@dataclass(slots=True)
class _Seeking(Generic[T]):
    """What goes on for one key."""

    under_way: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(ROUNDS))
    waiting: int = 0
    latest: _Round[T] | None = None  # unless that is over


class Together(Generic[T]):
    """As many keys are held as callers are searching: when none wants one any more, it is gone.

    Who comes more than `age` seconds after a search has begun takes part in the next; with 0, all that a
    caller gets was sought after it had asked.
    """

    def __init__(self, *, age: float = math.inf) -> None:
        self._age = age
        self._seeking: dict[Hashable, _Seeking[T]] = {}

    async def ask(self, key: Hashable, search: Search[T]) -> T:
        """What `search` gives or raises, of this caller or of another with the same key; an error is a copy.

        One whose caller is cancelled is made again by the next that waits.
        """
        seeking = self._seeking.setdefault(key, _Seeking())
        seeking.waiting += 1
        mine = seeking.latest
        if mine is None or mine.began + self._age <= trio.current_time():
            mine = seeking.latest = _Round()
        try:
            while not mine.over:
                if mine.made:
                    await mine.changed.wait()
                else:
                    await self._make(mine, seeking, search)
            found = mine.found
        finally:
            seeking.waiting -= 1
            if not seeking.waiting:
                del self._seeking[key]
        if isinstance(found, ModelnetError):
            raise copy(found) from found
        return found  # type: ignore[return-value]  # None only before the search is over

    async def _make(self, mine: _Round[T], seeking: _Seeking[T], search: Search[T]) -> None:
        mine.made = True
        try:
            async with seeking.under_way:  # which lets in all who ask in this very moment, too
                mine.began = trio.current_time()
                try:
                    mine.found = await search()
                except ModelnetError as error:
                    mine.found = error
                mine.over = True
                if seeking.latest is mine:
                    seeking.latest = None
        finally:
            mine.made = False
            mine.changed.set()
            mine.changed = trio.Event()
