"""Which connections to let go: a network is larger than the house of any peer.

Whoever was asked, or asked, is kept connected, for it will be asked again; but past a number some go, if
nothing else runs on them, those unused for longest first: of those who are not in my table, then of those who
are, and last of my neighbours. Who is in it stays in it, and is dialled again when needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from modelnet_p2p.identity import PeerId

REST_SECONDS = 10.0  # unused for less a connection stays: a walk comes back to whom it asked just now, and
# the far side of a new one, on a busy machine, has hardly heard yet who I am
SLACK = 8  # an eighth more than are kept go at a time, so that they do not go one by one


class Warmth:
    """When each connected peer was last of use to the overlay. Times are monotonic seconds."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self._used: OrderedDict[PeerId, float] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self._used)

    def on_connected(self, peer: PeerId, now: float) -> None:
        self._used[peer] = now
        self._used.move_to_end(peer)

    def on_used(self, peer: PeerId, now: float) -> None:
        """It asked, or answered; no news of one that has left meanwhile."""
        if peer in self._used:
            self.on_connected(peer, now)

    def on_gone(self, peer: PeerId) -> None:
        self._used.pop(peer, None)

    @property
    def scarce(self) -> bool:
        """Whether connections are so many, or nearly, that some are let go."""
        return len(self._used) + self.kept // SLACK >= self.kept

    def surplus(
        self, now: float, is_idle: Callable[[PeerId], bool], worth: Callable[[PeerId], int] = lambda _: 0
    ) -> list[PeerId]:
        """Whom to disconnect now: of those of the least `worth` who were unused for longest; nobody on whose
        connection something else runs."""
        excess = len(self._used) - self.kept
        if excess <= 0:
            return []
        old = [peer for peer, used in self._used.items() if used + REST_SECONDS <= now and is_idle(peer)]
        old.sort(key=worth)
        return old[: excess + self.kept // SLACK]
