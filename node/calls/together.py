"""One search for all calls that want the same at the same time.

A crowd of calls that begins at once would otherwise make a crowd of walks, and the holders of the records
rightly refuse most of them: the calls would then believe that nobody offers what they want.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from modelnet_p2p.errors import ModelnetError

T = TypeVar("T")
Search = Callable[[], Awaitable[T]]


@dataclass(slots=True)
class _Seeking(Generic[T]):
    """A search that is under way, or has just ended for those who still wait."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    waiting: int = 0
    ended: int = 0  # searches
    found: T | ModelnetError | None = None  # of the last of them


class Together(Generic[T]):
    """As many keys are held as calls are searching: when none wants one any more, it is gone."""

    def __init__(self) -> None:
        self._seeking: dict[Hashable, _Seeking[T]] = {}

    async def ask(self, key: Hashable, search: Search[T]) -> T:
        """What `search` gives or raises, or the one that ends first of those under way for this key.

        One whose caller is cancelled is made again by the next that waits.
        """
        seeking = self._seeking.setdefault(key, _Seeking())
        seeking.waiting += 1
        ended = seeking.ended
        try:
            async with seeking.lock:
                if seeking.ended == ended:
                    try:
                        seeking.found = await search()
                    except ModelnetError as error:
                        seeking.found = error
                    seeking.ended += 1
                found = seeking.found
        finally:
            seeking.waiting -= 1
            if not seeking.waiting:
                del self._seeking[key]
        if isinstance(found, ModelnetError):
            raise found
        return found  # type: ignore[return-value]  # None only before the first search has ended
