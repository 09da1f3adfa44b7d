"""How many peers there are, judged by how near the closest ones lie to keys that nobody could foresee.

Where n peers are spread evenly, the k-th closest to a random key lies about k / n of the space away from it.
A crowd that was ground around one peer is not there around the keys with which that peer refreshes its
table. Of the last few walks the smallest estimate counts: to hide peers from a walk makes it smaller, which
only widens what a table keeps; to make it larger, every one of these walks has to end among forgers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from modelnet_p2p.dht.keyspace import BITS, position
from modelnet_p2p.identity import PeerId

FAR = 4  # buckets whose walks count: the nearer ones lie where forgers are worth their while
WALKS = 8  # the last ones that count: an estimate of 20 peers errs by a fifth, the least of eight by a third
TORN = 2  # times the smallest estimate, the largest contradicts it: some walks ended in another network
LEAST_WALKS = 3  # before there is an estimate at all


class Census:
    """Fed with walks to random keys; `peers` says how many there are at least, about."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._estimates: deque[float] = deque(maxlen=WALKS)

    @property
    def peers(self) -> float | None:
        """None as long as too few walks have ended."""
        return min(self._estimates) if len(self._estimates) >= LEAST_WALKS else None

    @property
    def torn(self) -> bool:
        """Whether the walks contradict each other, as they do where some ended among a gang."""
        return bool(self._estimates) and max(self._estimates) > TORN * min(self._estimates)

    def on_walked(self, place: int, closest: Iterable[PeerId]) -> None:
        """A walk to this position has ended with these peers, nearest first."""
        distances = [position(peer) ^ place for peer in closest][: self.k]
        if len(distances) < self.k:
            self._estimates.append(float(len(distances)))  # a small world
        else:
            self._estimates.append((self.k - 1) * (1 << BITS) / max(distances[-1], 1))
