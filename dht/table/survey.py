"""Which walks keep one peer's table true, and from where each begins.

A walk that begins at all peers known goes where most of them lead; were those a gang's, it would end among
the gang. So what a newcomer learns first it learns from each of its bootstraps apart: the buckets in turns,
and where its own neighbourhood is crowded, that from every one of them. One honest bootstrap is enough.

In a network larger than the house each walk dials nearly all whom it asks, two dozen. So a newcomer looks
into as many far buckets as it takes to judge how many peers there are, and into one more at a time: the rest
of them fill by themselves, with those who come by, and with whom its own walks ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from modelnet_p2p.dht.keyspace import MAX_GROUND_BITS
from modelnet_p2p.dht.table.density import LEAST_FAR_WALKS
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact

FAR_LOOKS = 1  # of one turn, of which there is one each half minute
VAIN_FACTOR = (
    4  # times the interval, before it is looked again where nobody was hidden: chance alone makes a crowd
)
# for one newcomer in eight, and to ask all of it costs a hundred dials
HIDDEN_SHARE = 4  # k / 4 whom a look brings are no chance
MAX_ROOTS = 4  # bootstraps from which walks begin apart: each costs a newcomer a walk when it is besieged


@dataclass(frozen=True, slots=True)
class Look:
    """A walk with FIND_NODE towards `target`."""

    target: bytes
    seeds: tuple[Contact, ...] = ()  # it begins with them alone; none: with the closest that are known
    n: int = 0  # how many are looked for; 0: k


class Survey:
    """The looks of one peer."""

    def __init__(self, table: RoutingTable) -> None:
        self._table = table
        self._roots: dict[PeerId, Contact] = {}
        self._first: int | None = None  # how many walks the first survey has: those begin at the bootstraps
        self._begun = 0  # walks so far
        self._crowd_due = float("-inf")  # when to look again whom a crowd may hide

    def on_bootstrap(self, contact: Contact) -> None:
        """Somebody whom I was told to join through, and who answered."""
        if contact.id in self._roots or len(self._roots) < MAX_ROOTS:
            self._roots[contact.id] = contact

    def looks(self, now: Callable[[], float], interval: float, seed: Callable[[], bytes]) -> Iterator[Look]:
        """What to look for in this turn, one by one: each is chosen when the one before it has ended.

        `interval` is how long a bucket may be without a walk, `seed` gives fresh randomness.
        """
        roots = tuple(self._roots.values())
        stale = self._table.stale(now(), interval)
        far = [index for index in stale if index != MAX_GROUND_BITS]
        if self._first is None and roots:
            self._first = self._begun + len(stale)
        chosen = far[: max(FAR_LOOKS, LEAST_FAR_WALKS - self._begun)] + stale[len(far) :]
        for index in chosen:
            apart = len(roots) > 1 and self._begun < (self._first or 0)
            seeds = (roots[self._begun % len(roots)],) if apart else ()
            self._begun += 1
            yield Look(self._table.refresh_key(index, seed()), seeds)
        if (crowd := self._table.crowd()) and self._crowd_due <= now():
            self._crowd_due, known = now() + interval, len(self._table)
            for start in roots or (None,):
                yield Look(bytes(self._table.me), () if start is None else (start,), crowd)
            if len(self._table) < known + self._table.k // HIDDEN_SHARE:
                self._crowd_due += (VAIN_FACTOR - 1) * interval
