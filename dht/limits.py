"""How often one sender is served: a token bucket each, and no more of them than can be remembered.

Who is too fast is slowed down and not refused: the kad protocol answers in order, so a reply that is late
holds back the next request, whatever software sends it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from modelnet_p2p.identity import PeerId

MAX_SENDERS = 4096  # whose pace is remembered, also while they are gone: to come again buys no new burst


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

    def delay(self, sender: PeerId, now: float) -> float:
        """Seconds until this request may be served; its token is taken."""
        bucket = self._buckets.get(sender)
        if bucket is None:
            bucket = self._buckets[sender] = _Bucket(self._burst, now)
            if len(self._buckets) > self._max_senders:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(sender)
        bucket.tokens = min(self._burst, bucket.tokens + max(0.0, now - bucket.at) * self._rate) - 1
        bucket.at = now
        return max(0.0, -bucket.tokens / self._rate)
