"""The surroundings of a key, in slots: identities that crowd around it fill a slot and not the walk.

Honest peers lie evenly. Of N, about k lie within k/N of the space from a key, and about one in each of k
slots of that region. Whoever grinds identities to hide a key must put them nearer than the honest ones, and
so into the first slots, or very many into all. A publisher therefore stores all over the region where the k
nearest lie denser than they should, and a reader takes the nearest few of each slot, so that it gets past
any crowd to peers that hold the record.

Source: Sridhar et al.: Content Censorship in the InterPlanetary File System (NDSS 2024), whose publishers
store over a region too; the slots are ours, for they spare the reader the walk through the crowd.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol, TypeVar

from modelnet_p2p.dht.keyspace import BITS

READ_OF_SLOT = 2  # peers of one slot that a reader asks before it tries the others
STORED_OF_SLOT = 6  # ... that a publisher stores with: six times k is what an attacker can make it ask
CROWD_OF_SLOT = 7  # in a slot where one is expected: chance alone puts so many there once in 10,000 slots
CROWD_OF_REGION = 2.5  # times k in it: more than an estimate that is wrong by two explains
# of the radius, that the k nearest should fill: two thirds of them are expected there by themselves, so those
# who are ground beside them are the lesser part. Chance alone makes them so dense for one key in twenty
DENSE = 2 / 3

_distance = attrgetter("distance")


class Placed(Protocol):
    """Somebody at a distance from the key."""

    @property
    def distance(self) -> int: ...

    @property
    def counts(self) -> bool:
        """Whether it takes up room: not if it has failed or is silent."""
        ...


AnyPlaced = TypeVar("AnyPlaced", bound=Placed)


@dataclass(frozen=True, slots=True)
class Region:
    """All that is nearer to a key than `radius`, in `slots` rings of the same width."""

    radius: int
    slots: int

    @classmethod
    def expecting(cls, k: int, peers: float) -> Region:
        """Where k of so many peers are expected."""
        return cls(int(k / peers * 2**BITS), k)

    def slot(self, distance: int) -> int:
        return distance * self.slots // self.radius

    def holds_crowd(self, distances: Sequence[int]) -> bool:
        """Whether a slot is full of a crowd, of peers that lie so far away, nearest first."""
        width = self.radius // self.slots
        for first, last in zip(distances, distances[CROWD_OF_SLOT - 1 :], strict=False):
            if last >= self.radius:
                return False
            if last - first < width and self.slot(first) == self.slot(last):
                return True
        return False

    def is_dense(self, nearest_first: Sequence[Placed]) -> bool:
        """Whether the k nearest lie so near that many of them may have been ground to."""
        near = bisect_left(nearest_first, DENSE * self.radius, key=_distance)
        return near >= self.slots and sum(placed.counts for placed in nearest_first[:near]) >= self.slots

    def line(self, nearest_first: Sequence[AnyPlaced], of_slot: int) -> tuple[list[AnyPlaced], bool]:
        """In which order to ask, and whether there is a crowd.

        First the nearest `of_slot` of each slot, then those outside of the region: the rest are left out.
        """
        line: list[AnyPlaced] = []
        taken = [0] * (self.slots + 1)
        edge = bisect_left(nearest_first, self.radius, key=_distance)
        for placed in nearest_first[:edge]:
            if placed.counts:
                slot = self.slot(placed.distance)
                taken[slot] += 1
                if taken[slot] > of_slot:
                    continue
            line.append(placed)
        line += nearest_first[edge:]
        return line, max(taken) >= CROWD_OF_SLOT or sum(taken) > CROWD_OF_REGION * self.slots
