"""How many bytes of other people's values this peer holds at the same time, counted peer by peer.

One call may bring half a gigabyte, and so may its answer; what bounds the sum is here. Bytes count when
they arrive, not when they are announced: an announcement costs its sender nothing, and a bound on those would
let two strangers lock out everybody else.
"""

from __future__ import annotations

from collections import Counter

from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES

BUDGET_BYTES = 1 << 30  # of all peers: two of the largest bodies, or some thousand pictures
# No single peer takes all of it; its largest body just fits.
PEER_BYTES = MAX_BODY_BYTES + (64 << 10)


class Budget:
    """`take` before holding, `give` when let go. What a peer holds of itself is not counted."""

    def __init__(self, me: PeerId, total: int = BUDGET_BYTES, per_peer: int = PEER_BYTES) -> None:
        self._me = me
        self._total = total
        self._per_peer = per_peer
        self._held: Counter[PeerId] = Counter()
        self.taken = 0

    def take(self, peer: PeerId, size: int) -> bool:
        """Whether there is room for `size` more bytes of this peer; it is taken then."""
        if peer == self._me:
            return True
        if self.taken + size > self._total or self._held[peer] + size > self._per_peer:
            return False
        self.taken += size
        self._held[peer] += size
        return True

    def give(self, peer: PeerId, size: int) -> None:
        """Give back what was taken."""
        if peer == self._me or not size:
            return
        self.taken -= size
        self._held[peer] -= size
        if not self._held[peer]:
            del self._held[peer]
