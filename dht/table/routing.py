"""The routing table: a few peers at every distance, more of them nearby.

Kademlia's buckets: bucket i holds up to k peers that share exactly i leading bits with me. A peer that
answered stays as long as it answers; newcomers wait beside a full bucket and take the place of the first
that fails, so a flood of young peers cannot wash out the old ones. Of one IP group no more than its
share stays where others want in: a single network cannot be all that I know, yet a laboratory whose
peers all have neighbouring addresses loses nothing. The same share holds for those who wait and for those
who move up, else a flood of waiting peers of one network would inherit the bucket place by place.

A walk asks only those nearest to its key, so the table also says of whom nothing was heard for long
(`doubtful`): the driver asks them, and the dead leave also where nobody waits for their places.

Around myself buckets hold more: whoever grinds identities into my neighbourhood and dials me first must not
fill the places of those who truly live there (the sibling list of Baumgart, Mies: S/Kademlia, 2007). Where
that neighbourhood begins the density of peers elsewhere says, which nobody near me can forge.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from operator import itemgetter

from modelnet_p2p.dht.keyspace import BITS, MAX_GROUND_BITS, common_prefix, key_near, position
from modelnet_p2p.dht.table.churn import Churn
from modelnet_p2p.dht.table.density import Density
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact

MAX_FAILURES = 3  # in a row, and with nobody waiting: one lost answer is no death
GROUP_SHARE = 4  # of a contested bucket one IP group keeps at most k / 4 places
MAX_CHECKS = 32  # of peers in the table in one look: with a look each 30 s about a PING a second, 200 bytes
# with its answer; a table in a world of 100,000 peers has 280 entries, which are all asked once in 300 s so
COLD_FACTOR = (
    4  # times the silence of the connected is that of others: to ask them costs a dial, some 3 ms and
)
# 4 KB at each end, twenty times as much. Where peers die, 1 - 0.95 ** 4 = 19 % of them may be dead
COLD_CHECKS = 4  # of those in one look: 150 are gone through in the 1,200 s of a calm network
MAX_LOST = 64  # peers that fell silent and are asked again now and then: a partition may have healed
SETTLED_FACTOR = 4  # times the interval of others is that of far buckets that are settled
SETTLED_SHARE = 4  # k / 4 peers that all answer settle one: a walk gets on through any of them
LOST_CHECKS = 2  # of each look, so that each of them is asked about four times in an hour
WIDE = 6  # times k places has a bucket of my neighbourhood: a hundred forgers do not fill one
NEAR = 2  # times k peers live in the farthest such bucket, at most: the k closest to me lie in it and nearer
WIDEST = 9  # times k peers are looked for where a crowd is: a walk asks 200 at most
CROWDED = 1.5  # times as many neighbours as are expected are a crowd that hides some

_distance = itemgetter(0)


class Place(Enum):
    """Where `add` has put a peer."""

    TABLE = "table"  # in its bucket, or renewed there
    WAITING = "waiting"  # the bucket is full of peers that answer: first in line when one fails
    NOWHERE = "nowhere"  # it is me


@dataclass(slots=True)
class Entry:
    contact: Contact
    place: int
    seen: float  # when it last answered
    group: str | None  # IP group of the direct connection, None if unknown or private
    failures: int = 0  # since it last answered

    def alive(self, now: float) -> Entry:
        self.seen, self.failures = now, 0
        return self


@dataclass(slots=True)
class Bucket:
    """Both dicts are in the order of the last sign of life, oldest first."""

    entries: dict[PeerId, Entry] = field(default_factory=dict)
    waiting: dict[PeerId, Entry] = field(default_factory=dict)
    refreshed: float = float("-inf")  # when a walk last went through here
    since: float = float("inf")  # when the first peer came


class RoutingTable:
    """The peers that I know and that answer; at most k in and k beside each of the 256 buckets, and WIDE
    times k in those around me.

    Clients, which cannot be dialled, are never added: that is for the caller to see to.
    """

    def __init__(self, me: PeerId, k: int) -> None:
        self.me = me
        self.k = k
        self.churn = Churn()  # by what is seen in the buckets in which nobody waits
        self._place = position(me)
        self._buckets: dict[int, Bucket] = {}
        self._lost: OrderedDict[PeerId, Entry] = OrderedDict()  # asked or lost longest ago first
        self._size = 0
        self.density = Density(me, k)  # told by my walks
        self._wide = BITS  # the first bucket with more room, as the density says
        self._near = 0  # the first of those that hold, all together, no more than k peers: I know all of them
        # where those lie that have not failed since they last answered; None: to be looked up again
        self._healthy: list[tuple[int, Contact]] | None = None

    def __len__(self) -> int:
        return self._size

    def __contains__(self, peer: PeerId) -> bool:
        bucket = self._buckets.get(self._index(peer))
        return bucket is not None and peer in bucket.entries

    def __iter__(self) -> Iterator[Contact]:
        return (entry.contact for entry in self._entries())

    @property
    def mixed(self) -> bool:
        """Whether those I know are of more than one IP group: else two of one say as much as any two."""
        groups = (entry.group for entry in self._entries())
        first = next(groups, None)
        return any(group != first for group in groups)

    def add(self, contact: Contact, now: float, group: str | None = None) -> Place:
        """This peer is alive, speaks our protocol and can be dialled: it answered, or has just connected."""
        if contact.id == self.me:
            return Place.NOWHERE
        self._lost.pop(contact.id, None)
        index = self._index(contact.id)
        bucket = self._buckets.setdefault(index, Bucket())
        bucket.since = min(bucket.since, now)
        room = self._room(index)
        known = bucket.entries.pop(contact.id, None) or bucket.waiting.pop(contact.id, None)
        if known is not None:
            contact = contact if contact.addrs else known.contact
            group = group or known.group
        if not bucket.waiting and len(bucket.entries) < self.k:
            self._watch(index, contact.id, known, now)
        entry = Entry(contact, position(contact.id), now, group)
        if len(bucket.entries) >= room and (crowded := self._crowding(bucket, group)) is not None:
            self._shelve(bucket, bucket.entries.pop(crowded))
        if len(bucket.entries) < room:
            bucket.entries[contact.id] = entry
            self._count()
            return Place.TABLE
        self._shelve(bucket, entry)
        return Place.WAITING

    def answered(self, peer: PeerId, now: float) -> bool:
        """It answered where it is known to be: what went wrong before is forgotten.

        False: it is unknown, and there would be room for it.
        """
        index = self._index(peer)
        bucket = self._buckets.get(index)
        if bucket is None:
            return False
        if (entry := bucket.entries.pop(peer, None)) is not None:
            if not bucket.waiting:
                self._watch(index, peer, entry, now)
            if entry.failures:
                self._healthy = None
            bucket.entries[peer] = entry.alive(now)
            return True
        if (entry := bucket.waiting.pop(peer, None)) is not None:
            bucket.waiting[peer] = entry.alive(now)
            return True
        return len(bucket.entries) >= self._room(index)

    def failed(self, peer: PeerId, now: float) -> None:
        """It did not answer: somebody who waits takes its place, or after three times nobody does.

        For an heir whose IP group has its share already nobody is dropped at once.
        """
        bucket = self._buckets.get(self._index(peer))
        if bucket is None:
            return
        bucket.waiting.pop(peer, None)
        entry = bucket.entries.get(peer)
        if entry is None:
            return
        entry.failures += 1
        self._healthy = None
        if entry.failures == 1 and not bucket.waiting:
            self.churn.died(peer, entry.seen, now)
        if self._heir(bucket, peer) is not None:
            self.remove(peer)
        elif entry.failures >= MAX_FAILURES:
            self.remove(peer)
            self._lost[peer] = entry
            if len(self._lost) > MAX_LOST:
                self._lost.popitem(last=False)

    def remove(self, peer: PeerId) -> None:
        """It is gone for certain; whoever was seen last of those waiting moves up, those first whose IP group
        has less than its share."""
        bucket = self._buckets.get(self._index(peer))
        if bucket is None:
            return
        bucket.waiting.pop(peer, None)
        if peer in bucket.entries and bucket.waiting:
            best = self._heir(bucket, peer) or next(reversed(bucket.waiting))
            bucket.entries[best] = bucket.waiting.pop(best)
        bucket.entries.pop(peer, None)
        self._count()

    def closest(self, target: int | bytes, n: int, *, exclude: PeerId | None = None) -> list[Contact]:
        """The `n` known peers nearest to a position (or to a key's bytes), nearest first.

        Those that failed lately come only where the others do not suffice.
        """
        place = target if isinstance(target, int) else position(target)
        return [contact for _, contact in self.nearest(place, n, exclude=exclude)]

    def nearest(self, place: int, n: int, *, exclude: PeerId | None = None) -> list[tuple[int, Contact]]:
        """The same, each with how far away it is."""
        if self._healthy is None:
            self._healthy = [(entry.place, entry.contact) for entry in self._entries() if not entry.failures]
        chosen = self._healthy
        if len(chosen) < n + (exclude is not None):
            chosen = [(entry.place, entry.contact) for entry in self._entries()]
        found = [(there ^ place, contact) for there, contact in chosen]
        found.sort(key=_distance)  # some hundred at most: quicker than a heap
        return [one for one in found[: n + 1] if one[1].id != exclude][:n]

    def doubtful(
        self, now: float, longest: float, is_connected: Callable[[PeerId], bool] = lambda _: True
    ) -> list[Contact]:
        """Whom to ask for a sign of life: who failed lately, then who was silent for too long, and one or two
        of those that were given up: after a partition each half would else stay alone.

        How long that is follows from how fast peers die here, and is never more than `longest` seconds; where
        there is no connection it is COLD_FACTOR times as much.
        """
        silence = self.churn.silence(now, longest)
        doubted = [e for e in self._entries() if e.failures or e.seen + silence <= now]
        doubted.sort(key=lambda e: (-e.failures, e.seen))
        cold = [e for e in doubted if not e.failures and not is_connected(e.contact.id)]
        due = [e.contact.id for e in cold if e.seen + COLD_FACTOR * silence <= now]
        left = {e.contact.id for e in cold}.difference(due[:COLD_CHECKS])
        doubted = [e for e in doubted if e.contact.id not in left]
        lost = list(self._lost)[:LOST_CHECKS]
        for peer in lost:
            self._lost.move_to_end(peer)
        return [e.contact for e in (*doubted[:MAX_CHECKS], *map(self._lost.__getitem__, lost))]

    def stale(self, now: float, interval: float) -> list[int]:
        """The buckets through which no walk went for `interval` seconds, farthest first; SETTLED_FACTOR times
        as long where some live in a far one and all that are known answer, since the first of them came if
        no walk ever went there: the others come by.

        The last one, MAX_GROUND_BITS, stands for the k that are nearest to me: one walk towards my own id
        refreshes all buckets that hold nobody else.
        """
        indexes = [*self.far(), MAX_GROUND_BITS]
        return [index for index in indexes if self._is_stale(index, now, interval)]

    def far(self) -> range:
        """The buckets that lie beyond the k nearest to me, farthest first."""
        return range(self._near)

    def refresh_key(self, index: int, seed: bytes) -> bytes:
        """What a walk that refreshes bucket `index` asks for with FIND_NODE; `seed` is fresh randomness."""
        return bytes(self.me) if index >= MAX_GROUND_BITS else key_near(self._place, index, seed)

    def on_walked(self, target: int | bytes, now: float, closest: Sequence[PeerId] = ()) -> None:
        """A walk towards this position ended: its bucket needs no refresh for a while.

        `closest` are the nearest that it found, where nobody could foresee the key, or where it was my own.
        """
        place = target if isinstance(target, int) else position(target)
        index = min(common_prefix(self._place, place), MAX_GROUND_BITS)
        self._buckets.setdefault(index, Bucket()).refreshed = now
        if closest:
            self.density.on_walked(place, closest, now, len(self))
            self._resize()

    def crowd(self) -> int:
        """How many peers to look for around me, so that a crowd of forgers hides nobody; 0: there is none.

        Those that wait count as well: they are known to be there. It is always as many as a walk finds: where
        forgers are ten to one, those whom it is for lie far behind them.
        """
        peers = self.density.least
        if peers is None:
            return 0
        near = [bucket for index, bucket in self._buckets.items() if index >= self._wide]
        there = sum(len(bucket.entries) + len(bucket.waiting) for bucket in near)
        if there <= CROWDED * max(self.k, peers / 2**self._wide) and not self.density.torn:
            return 0
        return WIDEST * self.k

    def _watch(self, index: int, peer: PeerId, known: Entry | None, now: float) -> None:
        near = index >= self._near
        if known is None:
            self.churn.came(peer, now, near=near)
        else:
            self.churn.revived(peer, now)
            self.churn.lived(known.seen, now, near=near)

    def _is_stale(self, index: int, now: float, interval: float) -> bool:
        bucket = self._buckets.get(index)
        if bucket is None:
            return True
        settled = index < MAX_GROUND_BITS and len(bucket.entries) >= self.k // SETTLED_SHARE
        if settled and not any(entry.failures for entry in bucket.entries.values()):
            return max(bucket.refreshed, bucket.since) + SETTLED_FACTOR * interval <= now
        return bucket.refreshed + interval <= now

    def _index(self, peer: PeerId) -> int:
        return min(common_prefix(self._place, position(peer)), BITS - 1)

    def _entries(self) -> Iterator[Entry]:
        return (entry for bucket in self._buckets.values() for entry in bucket.entries.values())

    def _count(self) -> None:
        """Somebody came, left or moved."""
        self._healthy = None
        self._size = sum(len(bucket.entries) for bucket in self._buckets.values())
        self._near, held = 0, 0
        for index in sorted(self._buckets, reverse=True):
            held += len(self._buckets[index].entries)
            if held > self.k:
                self._near = min(index + 1, MAX_GROUND_BITS)
                break

    @property
    def _share(self) -> int:
        return max(1, self.k // GROUP_SHARE)

    def _room(self, index: int) -> int:
        return WIDE * self.k if index >= self._wide else self.k

    def _resize(self) -> None:
        """The density has news: who waits moves up where there is more room now, the youngest where less."""
        peers = self.density.least
        if peers is None:
            return
        self._wide = max(0, math.ceil(math.log2(max(peers, 1.0) / (NEAR * self.k))) - 1)
        for index, bucket in self._buckets.items():
            room = self._room(index)
            while bucket.waiting and len(bucket.entries) < room:
                peer = next(reversed(bucket.waiting))
                bucket.entries[peer] = bucket.waiting.pop(peer)
            while len(bucket.entries) > room:
                self._shelve(bucket, bucket.entries.pop(next(reversed(bucket.entries))))
        self._count()

    def _shelve(self, bucket: Bucket, entry: Entry) -> None:
        bucket.waiting[entry.contact.id] = entry
        if len(bucket.waiting) <= self.k:  # as many again as may ever be needed at once
            return
        [(group, held)] = Counter(e.group for e in bucket.waiting.values()).most_common(1)
        crowd = group is not None and held > self._share
        del bucket.waiting[next(p for p, e in bucket.waiting.items() if not crowd or e.group == group)]

    def _heir(self, bucket: Bucket, leaving: PeerId) -> PeerId | None:
        """Who was seen last of those waiting whose IP group has less than its share of the bucket."""
        counts = Counter(entry.group for peer, entry in bucket.entries.items() if peer != leaving)
        for peer, entry in reversed(bucket.waiting.items()):
            if entry.group is None or counts[entry.group] < self._share:
                return peer
        return None

    def _crowding(self, bucket: Bucket, newcomer: str | None) -> PeerId | None:
        """Who must make room for this newcomer: the youngest of a group that holds more than its share."""
        counts = Counter(entry.group for entry in bucket.entries.values() if entry.group is not None)
        if not counts:
            return None
        group, held = counts.most_common(1)[0]
        if (
            group == newcomer
            or held <= self._share
            or (newcomer is not None and counts[newcomer] + 1 >= held)
        ):
            return None
        return next(peer for peer, entry in reversed(bucket.entries.items()) if entry.group == group)
