"""How often one sender is served: a token bucket each, and no more of them than can be remembered.

Requests and the signature checks that they cost have a bucket each. Who is too fast is slowed down and loses
nothing. A stock node is served late: the kad protocol answers in order, so a late reply holds back the next
request. One of ours is told at once when to ask again, for it could not tell a late reply from a dead peer;
if it does not listen it is served late as well.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from modelnet_p2p.identity import PeerId

MAX_SENDERS = 4096  # whose pace is remembered, also while they are gone: to come again buys no new burst
MAX_DELAY = 0.02  # seconds that anybody is served late: less than the round trip that telling it costs
MAX_TOLD = 32  # times that one sender is told more often than served: four times what ours have in flight
MAX_RETRY_MS = 60_000  # nobody is told more; only who does not listen gets there


@dataclass(slots=True)
class _Bucket:
    tokens: float  # below 0: already promised to requests that wait
    at: float  # when it was last looked at


class Throttle:
    """`rate` requests a second from each sender, `burst` at once. Times are monotonic seconds."""

    def __init__(self, rate: float, burst: float, max_senders: int = MAX_SENDERS) -> None:
        if rate <= 0 or burst < 1 or max_senders < 1:
            raise ValueError(f"{rate} requests a second, {burst} at once, serve nobody")
        self._rate = rate
        self._burst = burst
        self._max_senders = max_senders
        self._buckets: OrderedDict[PeerId, _Bucket] = OrderedDict()  # longest unheard first

    def __len__(self) -> int:
        return len(self._buckets)

    def delay(self, sender: PeerId, now: float, cost: float = 1) -> float:
        """Seconds until this request may be served; its tokens are taken."""
        wait = self.wait(sender, now, cost)
        self.take(sender, cost)
        return wait

    def wait(self, sender: PeerId, now: float, cost: float = 1) -> float:
        """Seconds that `delay` would say; nothing is taken."""
        return max(0.0, (cost - self._bucket(sender, now).tokens) / self._rate)

    def take(self, sender: PeerId, cost: float = 1) -> None:
        """The tokens of a request that waits as long as was just said."""
        self._buckets[sender].tokens -= cost

    def _bucket(self, sender: PeerId, now: float) -> _Bucket:
        bucket = self._buckets.get(sender)
        if bucket is None:
            bucket = self._buckets[sender] = _Bucket(self._burst, now)
            if len(self._buckets) > self._max_senders:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(sender)
        bucket.tokens = min(self._burst, bucket.tokens + max(0.0, now - bucket.at) * self._rate)
        bucket.at = now
        return bucket


@dataclass(frozen=True, slots=True)
class SlowDown:
    """Too fast: to be refused, and told after how many milliseconds to ask again."""

    retry_ms: int


class Limits:
    """What one sender gets of this peer: its requests, and the signatures that are checked for them."""

    def __init__(self, requests: Throttle, checks: Throttle) -> None:
        self._requests = requests
        self._checks = checks
        self._told: OrderedDict[PeerId, int] = OrderedDict()  # more often than served; longest ago first

    def __len__(self) -> int:
        return len(self._told)

    def on_request(self, sender: PeerId, now: float, *, checks: int, ours: bool) -> float | SlowDown:
        """Seconds until it may be served, and what it costs is taken; or that it is refused, for nothing.

        `checks` are the signatures that it may have to be checked, `ours` whether it understands a refusal.
        """
        wait = self._requests.wait(sender, now)
        if checks:
            wait = max(wait, self._checks.wait(sender, now, checks))
        told = self._told.get(sender, 0)
        if ours and wait > MAX_DELAY and told < MAX_TOLD:
            self._count(sender, told + 1)
            return SlowDown(min(math.ceil(wait * 1000), MAX_RETRY_MS))
        if told:
            self._count(sender, told - 1)
        self._requests.take(sender)
        if checks:
            self._checks.take(sender, checks)
        return wait

    def _count(self, sender: PeerId, told: int) -> None:
        self._told.pop(sender, None)
        if told:
            self._told[sender] = told
            if len(self._told) > MAX_SENDERS:
                self._told.popitem(last=False)
