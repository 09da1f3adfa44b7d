"""Asks known peers for a sign of life: whether those of whom nothing was heard for long are still there.

A walk asks only the few that are nearest to its key, so in far buckets the dead would stay for hours. The
driver tells the table of each answer and of each silence, as it does for every request; what follows from
them is the table's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.lookup import DONE, Done, Wait
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message

PING = Message(Kind.PING)


class Check:
    """One PING to each of these, `alpha` open at once; done when each has answered or failed."""

    hops = 0  # nobody is asked but those it was given
    unfinished = False  # it ends when all have answered

    def __init__(self, peers: Iterable[Contact], alpha: int) -> None:
        self.messages = 0
        self._alpha = alpha
        self._left = deque(peers)
        self._open: set[PeerId] = set()

    def poll(self, now: float) -> Send | Wait | Done:
        if self._left and len(self._open) < self._alpha:
            contact = self._left.popleft()
            self._open.add(contact.id)
            self.messages += 1
            return Send(contact, PING)
        return Wait(float("inf")) if self._open else DONE  # the driver ends each at its timeout

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        self._open.discard(peer)

    def on_failure(self, peer: PeerId, now: float) -> None:
        self._open.discard(peer)

    def on_held(self, peer: PeerId) -> None:
        pass

    def on_busy(self, peer: PeerId, now: float) -> None:
        self._open.discard(peer)
