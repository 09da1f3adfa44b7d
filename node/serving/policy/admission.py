"""Who may use a model now, who waits, who is told to go elsewhere.

A model has a few slots and a short queue, first come, first served. A full queue refuses at once:
the caller knows other peers, and a refusal in a millisecond is worth more than a late answer.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

QUEUE = 16  # calls; at a second each the last one waits half of its deadline of 30 s


class Decision(Enum):
    ADMITTED = auto()  # it holds a slot until it leaves
    QUEUED = auto()  # some `leave` will name it
    REFUSED = auto()  # it was never in; nothing to leave


class Admission:
    """Slots and queue of one model. A ticket is any number that the driver uses once."""

    def __init__(self, slots: int, queue: int = QUEUE) -> None:
        if slots < 1 or queue < 0:
            raise ValueError(f"{slots} slots and a queue of {queue} admit nobody")
        self.slots = slots
        self.queue = queue
        self._running: set[int] = set()
        self._waiting: deque[int] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def load(self) -> float:
        """0 (idle) to 1 (the next call would be refused)."""
        return (self.in_flight + self.queued) / (self.slots + self.queue)

    def enter(self, ticket: int) -> Decision:
        if ticket in self._running or ticket in self._waiting:
            raise ValueError(f"ticket {ticket} is already in")
        if len(self._running) < self.slots:
            self._running.add(ticket)
            return Decision.ADMITTED
        if len(self._waiting) < self.queue:
            self._waiting.append(ticket)
            return Decision.QUEUED
        return Decision.REFUSED

    def leave(self, ticket: int) -> int | None:
        """The ticket is done, or gave up waiting; returns the ticket that has its slot from now on."""
        if ticket not in self._running:
            self._waiting.remove(ticket)
            return None
        self._running.remove(ticket)
        if not self._waiting:
            return None
        following = self._waiting.popleft()
        self._running.add(following)
        return following
