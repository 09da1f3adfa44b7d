"""Which walks keep one peer's table true, and from where each begins.

A walk that begins at all peers known goes where most of them lead; were those a gang's, it would end among
the gang. So what a newcomer learns first it learns from each of its bootstraps apart: the buckets in turns,
and where its own neighbourhood is crowded, that from every one of them. One honest bootstrap is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from modelnet_p2p.dht.routing import RoutingTable
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact

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
        self._apart = True  # no survey was made yet: its walks begin at the bootstraps
        self._crowded_at = float("-inf")  # when it was last looked who a crowd may hide

    def on_bootstrap(self, contact: Contact) -> None:
        """Somebody whom I was told to join through, and who answered."""
        if contact.id in self._roots or len(self._roots) < MAX_ROOTS:
            self._roots[contact.id] = contact

    def looks(self, now: Callable[[], float], interval: float, seed: Callable[[], bytes]) -> Iterator[Look]:
        """What to look for, one after the other: each is chosen when the one before it has ended.

        `interval` is how long a bucket may be without a walk, `seed` gives fresh randomness.
        """
        roots = tuple(self._roots.values())
        apart, self._apart = self._apart and len(roots) > 1, self._apart and not roots
        for number, index in enumerate(self._table.stale(now(), interval)):
            seeds = (roots[number % len(roots)],) if apart else ()
            yield Look(self._table.refresh_key(index, seed()), seeds)
        if (crowd := self._table.crowd()) and self._crowded_at + interval <= now():
            self._crowded_at = now()
            for start in roots or (None,):
                yield Look(bytes(self._table.me), () if start is None else (start,), crowd)
