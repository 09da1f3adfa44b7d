"""Who may use a model now, who waits, who is told to go elsewhere.

A model has a few slots and a short queue. Callers take turns in it, each with its own calls in their
order: who sends a hundred calls waits for them, and not everybody else. A full queue refuses at once, for
the caller knows other peers and a refusal in a millisecond is worth more than a late answer; but a
caller with fewer calls waiting than another takes the place of that one's last.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

QUEUE = 16  # calls; at a second each the last one waits half of its deadline of 30 s


@dataclass(frozen=True, slots=True)
class Admitted:
    """It holds a slot until it leaves."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Some `leave` will name it. `evicted` lost its place to it and is out: it must not leave."""

    evicted: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """It was never in; nothing to leave."""


Decision = Admitted | Queued | Refused
ADMITTED = Admitted()


class Admission:
    """Slots and queue of one model. A ticket is any number that the driver uses once."""

    def __init__(self, slots: int, queue: int = QUEUE) -> None:
        if slots < 1 or queue < 0:
            raise ValueError(f"{slots} slots and a queue of {queue} admit nobody")
        self.slots = slots
        self.queue = queue
        self._running: set[int] = set()
        self._waiting: dict[str, deque[int]] = {}  # by caller, whose turn it is first; none is empty
        self._callers: dict[int, str] = {}  # of the tickets that wait

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._callers)

    @property
    def empty(self) -> bool:
        """Whether no call is in."""
        return not (self._running or self._callers)

    @property
    def load(self) -> float:
        """0 (idle) to 1 (the next call of the busiest caller would be refused)."""
        return (self.in_flight + self.queued) / (self.slots + self.queue)

    def enter(self, ticket: int, caller: str = "") -> Decision:
        """A call of `caller` comes in."""
        if ticket in self._running or ticket in self._callers:
            raise ValueError(f"ticket {ticket} is already in")
        if len(self._running) < self.slots:
            self._running.add(ticket)
            return ADMITTED
        evicted: int | None = None
        if self.queued >= self.queue:
            greediest = max(self._waiting, key=lambda name: len(self._waiting[name]), default=caller)
            if len(self._waiting.get(greediest, ())) <= len(self._waiting.get(caller, ())) + 1:
                return Refused()  # an exchange would only turn the two around
            evicted = self._waiting[greediest][-1]
            self._forget(evicted)
        self._waiting.setdefault(caller, deque()).append(ticket)
        self._callers[ticket] = caller
        return Queued(evicted)

    def leave(self, ticket: int) -> int | None:
        """The ticket is done, or gave up waiting; returns the ticket that has its slot from now on."""
        if ticket not in self._running:
            self._forget(ticket)
            return None
        self._running.remove(ticket)
        if not self._waiting:
            return None
        caller = next(iter(self._waiting))
        following = self._waiting[caller][0]
        self._forget(following)
        if caller in self._waiting:  # the others first
            self._waiting[caller] = self._waiting.pop(caller)
        self._running.add(following)
        return following

    def _forget(self, ticket: int) -> None:
        if ticket not in self._callers:
            raise ValueError(f"ticket {ticket} is not in")
        caller = self._callers.pop(ticket)
        self._waiting[caller].remove(ticket)
        if not self._waiting[caller]:
            del self._waiting[caller]
