"""How many peers there are, told from how densely they lie.

The k-th closest of N evenly placed peers lies about k/N of the space away. Each walk that found the k closest
to a place that nobody could foresee is a sample; their median is the estimate, so that a gang around one
place, mine for instance, moves it little.

Source: as for a Poisson process, whose rate (k - 1) / d estimates without bias; one sample is right to within
1 / sqrt(k - 2), a quarter with k = 20. go-libp2p-kad-dht's `netsize` does it with the mean of all k.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

from modelnet_p2p.dht.keyspace import BITS, common_prefix, position
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.identity import PeerId

FAR = 4  # buckets whose walks nobody near me can foresee or is worth a forger's while
FAR_WALKS = 8  # the last of those that count: one errs by a quarter, the least of eight by a third
LEAST_FAR_WALKS = 3  # before they say anything
WHOLE = 0.75  # of k answers: a walk that brings fewer to who knows k was cut short, and tells nothing
TORN = 2.5  # times the least of them, the largest contradicts it: some walks ended in another network, or it
# was chance, as for one in fifty of three walks and one in ten of eight: that costs a look around more


class Density:
    """One peer's estimate. For each bucket the newest walk there is kept as a sample: at most 257."""

    def __init__(self, me: PeerId, k: int) -> None:
        self._place = position(me)
        self._k = k
        self._samples: dict[int, float] = {}
        self._far: deque[tuple[float, float]] = deque(maxlen=FAR_WALKS)  # when, and what it said
        self._region: Region | None = None

    def on_walked(
        self, target: int | bytes, closest: Iterable[PeerId], now: float = 0.0, known: int = 0
    ) -> None:
        """A walk towards `target`, which nobody could foresee, found these closest to it; or towards me.

        I know of so many already: where that is k, fewer than k found are not all that there are.
        """
        place = target if isinstance(target, int) else position(target)
        distances = sorted(position(peer) ^ place for peer in closest)[: self._k]
        if not distances:
            return
        if len(distances) < self._k and known < self._k:
            peers = float(len(distances))  # these are all
        elif len(distances) < WHOLE * self._k:
            return
        else:
            peers = (len(distances) - 1) * 2.0**BITS / distances[-1]
        bucket = common_prefix(self._place, place)
        self._samples[bucket] = peers
        if bucket < FAR:
            self._far.append((now, peers))
        self._region = self._expected()

    @property
    def peers(self) -> float | None:
        """About how many there are; None before the first walk."""
        return median(self._samples.values()) if self._samples else None

    @property
    def least(self) -> float | None:
        """About how many there are at least, as the last walks to far keys say; None before there were some.

        To hide peers from a walk makes this smaller; to make it larger, each has to end among forgers.
        """
        return min(peers for _, peers in self._far) if len(self._far) >= LEAST_FAR_WALKS else None

    @property
    def torn(self) -> bool:
        """Whether the walks to far keys contradict each other, as they do where some ended among a gang."""
        said = [peers for _, peers in self._far]
        return bool(said) and max(said) > TORN * min(said)

    @property
    def missing(self) -> int:
        """How many walks to far keys are wanting before they say anything."""
        return max(0, LEAST_FAR_WALKS - len(self._far))

    def forget(self, before: float) -> None:
        """What walks to far keys said before then counts no more: the network may have grown."""
        while self._far and self._far[0][0] < before:
            self._far.popleft()

    @property
    def region(self) -> Region | None:
        """Where a key's holders are expected; None where that is most of the space, or nothing is known."""
        return self._region

    def _expected(self) -> Region | None:
        peers = self.peers
        return Region.expecting(self._k, peers) if peers is not None and peers >= 2 * self._k else None
