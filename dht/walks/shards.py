"""A key that is full goes on in shards: where its publishers move to, and which of them a reader reads.

A holder keeps so many records under one key; who comes later is told `split` and stores under the shard of
its own place, one of 16, and where that is full too, one of 16 of that. The key itself stays what it is and
says that it is split as long as a record that it sent on may live, so a publisher knocks there each time it
signs anew. A reader who wants a few records draws shards at random, and one who wants all walks them all.
"""

from __future__ import annotations

from collections.abc import Callable

from modelnet_p2p.dht.walks.storing import Stored
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import MAX_SHARD_DEPTH, shard_key, shard_prefix

DIGITS = "0123456789abcdef"
MAX_READS = 300  # of shards by one reader: all 16, all 256 of those, and some; a million records
KNOCK_AGAIN = 0.45  # of a record's life: before what the key remembers of it is over, which is half at least


class Spill:
    """Where one peer's records of a key go, and when it knocks at the key itself again."""

    def __init__(self, key: bytes, provider: PeerId, record_lifetime: float) -> None:
        self.key = key
        self.depth = 0
        self._provider = provider
        self._pause = KNOCK_AGAIN * record_lifetime
        self._knocked = float("-inf")

    def start(self, now: float) -> bytes:
        """The key to store under first."""
        if now - self._knocked >= self._pause:
            self.depth = 0
            self._knocked = now
        return self._at(self.depth)

    def after(self, report: Stored, at_least: int = 0) -> bytes | None:
        """The key to store under next, None when that was the last; goes on to depth `at_least` in any case.

        Two holders are believed that the key is full, or the only one, as readers do.
        """
        full = not report.promised and report.split >= min(2, max(1, report.asked))
        if self.depth >= at_least and (not full or self.depth >= MAX_SHARD_DEPTH):
            return None
        self.depth += 1
        return self._at(self.depth)

    @property
    def at(self) -> bytes:
        """The key under which its records lie now."""
        return self._at(self.depth)

    def _at(self, depth: int) -> bytes:
        return shard_key(self.key, shard_prefix(self._provider, depth)) if depth else self.key


class ShardReads:
    """Which shards of a split key are read, one after the other. `limit` records are enough; None: all."""

    def __init__(self, key: bytes, limit: int | None, shuffle: Callable[[list[str]], None]) -> None:
        self._key = key
        self._limit = limit
        self._shuffle = shuffle
        self._prefixes: list[str] = []
        self._current = ""
        self._handed: dict[bytes, str] = {}  # prefixes of shards that are being read
        self.reads = 0
        self.on_read(split=True)

    def on_read(self, *, split: bool, at: bytes | None = None) -> None:
        """What was read there (without it: last) is split, or is not."""
        prefix = self._current if at is None else self._handed.pop(at)
        if split and len(prefix) < MAX_SHARD_DEPTH:
            children = [prefix + digit for digit in DIGITS]
            self._shuffle(children)
            self._prefixes += children

    def next(self, found: int) -> bytes | None:
        """The shard to read next, when `found` records are known; None: none.

        One is read even where the key itself held enough: else its first-comers would get all callers.
        """
        enough = self.reads > 0 and self._limit is not None and found >= self._limit
        if enough or not self._prefixes or self.reads >= MAX_READS:
            return None
        self._current = self._prefixes.pop(0)
        self.reads += 1
        at = shard_key(self._key, self._current)
        self._handed[at] = self._current
        return at
