"""How fast peers come and go, by what the routing table sees, and how often records are told because of it.

Lifetimes are taken for exponential: the rate is then the number of those that went over the time for which
all were seen alive (the maximum likelihood with censored observations), one number without an age. Measured
sessions are closer to a Weibull distribution with a shape below 1 (Stutzbach and Rejaie: Understanding Churn
in Peer-to-Peer Networks, IMC 2006): the old go more rarely than the young. What that would spoil is met so:

- A contested bucket keeps the old, so it would see too few deaths. Only buckets in which nobody waits are
  watched: they hold all the living of their corner, of all ages, as the holders of a record are.
- A death is found late, so the time since the last sign of life counts for half.
- The first answer that is missing counts, or tables younger than a death takes to be proven would see none;
  whoever answers again was not dead.
- Holders are lost as well where newcomers push them out of the k closest. Where as many come as go they
  fill the gaps, so it is the greater of both rates that counts. Only who appears in my neighbourhood, all of
  which I know, is new to the world; elsewhere others come by for hours who were always there.
- Before much was seen, the rate is a high one: as if one peer had died in a quarter of an hour.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from modelnet_p2p.identity import PeerId

# Of the holders that may be lost between two stores. A promise stands on a majority, 11 of k = 20: all of
# them are lost in 0.5 ** 11 = 0.05 % of intervals, and the promise is found in >= 99.9 %.
LOSS = 0.5
FASTEST = 60.0  # seconds between two stores at least: a walk of each key is some 30 requests
SLOWEST = 3600.0  # at most: half of a record's life, when it is signed anew and stored anyway
MEMORY = 600.0  # seconds after which what was seen counts for 1 / e: a bad hour is soon noticed, soon over
PRIOR_DEATHS = 1.0  # that were not seen, ...
PRIOR_SECONDS = 600.0 / math.log(2)  # ... in this time: 7 % a minute, for which telling each 600 s is right
DOUBT = 0.05  # of peers silent for so long that this share of them is dead, each is asked
SETTLING = 300.0  # seconds from the first peer that is met: until then all are new to me, none to the world
MAX_GONE = 256  # whose return is recognised: more than a table without waiting peers has


class Churn:
    """The rate at which peers come and go. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._seconds = 0.0  # for which peers were seen alive, all together; fading
        self._near_seconds = 0.0  # ... those of my neighbourhood; fading
        self._deaths = 0.0  # fading
        self._arrivals = 0.0  # in my neighbourhood; fading
        self._at: float | None = None  # until when all four have faded
        self._began: float | None = None
        self._gone: OrderedDict[PeerId, float] = OrderedDict()  # when each died, oldest first

    def lived(self, since: float, now: float, *, near: bool = True) -> None:
        """Somebody was alive from `since` to `now`."""
        self._fade(now)
        self._seconds += max(0.0, now - since)
        if near:
            self._near_seconds += max(0.0, now - since)

    def came(self, peer: PeerId, now: float, *, near: bool = True) -> None:
        """Somebody who was not known is there."""
        self._fade(now)
        if self._began is None:
            self._began = now
        if not self.revived(peer, now) and near and now - self._began >= SETTLING:
            self._arrivals += 1.0

    def revived(self, peer: PeerId, now: float) -> bool:
        """It is there; whether it was taken for dead, which is put right."""
        self._fade(now)
        died = self._gone.pop(peer, None)
        if died is not None:
            self._deaths = max(0.0, self._deaths - math.exp((died - now) / MEMORY))
        return died is not None

    def died(self, peer: PeerId, seen: float, now: float) -> None:
        """It was alive last at `seen`, and did not answer at `now`."""
        self._fade(now)
        self._seconds += max(0.0, now - seen) / 2
        self._deaths += 1.0
        self._gone[peer] = now
        if len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)

    def rate(self, now: float) -> float:
        """Deaths (or arrivals, if they are more) per peer and second."""
        self._fade(now)
        leaving = (self._deaths + PRIOR_DEATHS) / (self._seconds + PRIOR_SECONDS)
        return max(leaving, self._arrivals / (self._near_seconds + PRIOR_SECONDS))

    def silence(self, now: float, longest: float) -> float:
        """Seconds without a sign of life after which a share `DOUBT` of peers is dead; `longest` at most."""
        return min(-math.log(1 - DOUBT) / self.rate(now), longest)

    def interval(self, now: float, preset: float) -> float:
        """Seconds between two stores, in which the share `LOSS` of a record's holders is expected to be lost.

        A `preset` below `FASTEST`, as tests have, is taken as it is.
        """
        if preset < FASTEST:
            return preset
        return min(max(-math.log(1 - LOSS) / self.rate(now), FASTEST), SLOWEST)

    def _fade(self, now: float) -> None:
        if self._at is None:
            self._at = now
        if now <= self._at:
            return
        share = math.exp((self._at - now) / MEMORY)
        self._seconds *= share
        self._near_seconds *= share
        self._deaths *= share
        self._arrivals *= share
        self._at = now
