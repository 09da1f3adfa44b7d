"""Which walks keep one peer's table true, and from where each begins.

A walk that begins at all peers known goes where most of them lead; were those a gang's, it would end among
the gang. So what a newcomer learns first it learns from each of its bootstraps apart: the buckets in turns,
and where its own neighbourhood is crowded, that from every one of them. One honest bootstrap is enough.

In a network larger than the house each walk dials nearly all whom it asks. So a newcomer sounds as many far
buckets as it takes to judge how many peers there are, and one more at a time that is not settled yet: most
fill by themselves, with those who come by, and with whom its own walks ask.

A crowd around me is looked through, which costs a hundred dials and more. So what says that it is one must
not be old: in a network that grows, my neighbourhood does too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from modelnet_p2p.dht.keyspace import MAX_GROUND_BITS
from modelnet_p2p.dht.table.density import LEAST_FAR_WALKS
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.walks.finding import FindClosest, GroupOf, Sounding, of_no_group
from modelnet_p2p.dht.walks.lookup import LATE, LATE_READ
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.tuning import Tuning

FAR_LOOKS = 1  # of one turn, of which there is one each half minute
# times the interval, before it is looked again where nobody was hidden: chance alone makes a crowd for one
# newcomer in eight, and to ask all of it costs a hundred dials
VAIN_FACTOR = 4
HIDDEN_SHARE = 4  # k / 4 whom a look brings are no chance
FRESH_SECONDS = 10.0  # walks to far keys that are older are made anew before a crowd is looked through
# walks of who is besieged: with six, nine tenths of their true neighbours were known to 96 % of 300 such
# newcomers, with three to 93 %, with none to 89 %
SHOWN = 6
UNHURRIED = max(LATE, LATE_READ)  # times the timeout of a request
MAX_ROOTS = 4  # bootstraps from which walks begin apart: each costs a newcomer a walk when it is besieged


@dataclass(frozen=True, slots=True)
class Look:
    """A walk with FIND_NODE towards `target`."""

    target: bytes
    seeds: tuple[Contact, ...] = ()  # it begins with them alone; none: with the closest that are known
    n: int = 0  # of the closest have to answer; 0: only as many as tell who lives there

    def walk(
        self,
        seeds: Sequence[Contact],
        me: PeerId,
        tuning: Tuning,
        patience: float | None = None,
        group_of: GroupOf = of_no_group,
    ) -> FindClosest | Sounding:
        """It as a machine, from these seeds. Without `patience`, where nobody waits for it, each request is
        answered or fails before it is late: nobody is asked only because others are slow."""
        patience = UNHURRIED * tuning.request_timeout if patience is None else patience
        if not self.n:
            return Sounding(self.target, seeds, me=me, tuning=tuning, patience=patience, group_of=group_of)
        return FindClosest(self.target, seeds, me=me, tuning=replace(tuning, k=self.n), patience=patience)


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
            self._first = self._begun + max(len(stale), LEAST_FAR_WALKS + 1)
        wanting = max(LEAST_FAR_WALKS - self._begun, min(self._table.density.missing, FAR_LOOKS))
        first = self._table.far()[:wanting]  # the farthest, full or not: they say how many there are
        for index in (*(first or far[:FAR_LOOKS]), *stale[len(far) :]):
            apart = len(roots) > 1 and self._begun < (self._first or 0)
            seeds = (roots[self._begun % len(roots)],) if apart else ()
            self._begun += 1
            yield refreshing(self._table, index, seed(), seeds)
        if self._table.crowd() and self._crowd_due <= now():
            self._crowd_due = now() + interval
            yield from self._judge_anew(now(), seed)
            if crowd := self._table.crowd():
                known = len(self._table)
                for start in roots or (None,):
                    yield Look(bytes(self._table.me), () if start is None else (start,), crowd)
                yield from self._show_myself(seed)
                if len(self._table) < known + self._table.k // HIDDEN_SHARE:
                    self._crowd_due += (VAIN_FACTOR - 1) * interval

    def _judge_anew(self, now: float, seed: Callable[[], bytes]) -> Iterator[Look]:
        """As many walks to far keys as are missing before it can be judged how many peers there are now."""
        density, far = self._table.density, self._table.far()
        if far:
            density.forget(now - FRESH_SECONDS)
            for number in range(density.missing):
                yield refreshing(self._table, far[number % len(far)], seed())

    def _show_myself(self, seed: Callable[[], bytes]) -> Iterator[Look]:
        """Walks far away: whom they ask knows me then, and names me beside the crowd to who comes later."""
        far = self._table.far()
        for number in range(SHOWN if far else 0):
            key = self._table.refresh_key(far[number % len(far)], seed())
            yield Look(key, n=self._table.k)


def refreshing(table: RoutingTable, index: int, seed: bytes, seeds: tuple[Contact, ...] = ()) -> Look:
    """A look that refreshes bucket `index`: who lives far away is sounded, my neighbours have to answer."""
    n = table.k if index == MAX_GROUND_BITS else 0
    return Look(table.refresh_key(index, seed), seeds, n)
