"""Which of the calls that wait go into a model's next step together, and whether the step waits for more.

One step at a time. It takes the call that has waited longest, and beside it calls of the same kind, callers
taking turns, until it is full. A model that is idle begins at once. Only right after a step that several
callers shared may the next one wait, for those who were just answered: callers that ask again and again come
back in a moment, and would otherwise fall into two halves that never meet. That wait is no longer than
the last step was, and it is left out for a while where nobody came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

MAX_GATHER = 0.002  # seconds: a caller on this machine is back within one, and one over a network is not
GATHER_SHARE = 1.0  # of the last step; with a quarter 16 callers made a tenth fewer calls a second
MAX_SKIPPED = 64  # steps that begin without a wait after waits for nobody, doubled from 1 each time


@dataclass(frozen=True, slots=True)
class Run:
    """A step of these calls begins now; it lasts until `ended`."""

    tickets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again when something has changed, and at this instant."""

    until: float


@dataclass(frozen=True, slots=True)
class _Call:
    caller: str
    kind: Hashable  # None: it runs alone
    rows: int


class Batching:
    """The calls of one model that wait for a step. A ticket is any number that the driver uses once."""

    def __init__(self, rows: int) -> None:
        """`rows`: most that the model takes in one step. A call that brings more runs alone."""
        if rows < 1:
            raise ValueError(f"a step of {rows} rows")
        self._limit = rows
        self._waiting: dict[int, _Call] = {}  # who came first is first
        self._step = 0  # calls in the one that runs, 0: none
        self._began = 0.0
        self._gather_until = float("-inf")
        self._expected = 0  # calls that wait once everybody is back
        self._gathered_from = -1  # calls that waited when a wait for others began; -1: none did
        self._skips = self._to_skip = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, ticket: int, caller: str, kind: Hashable, rows: int) -> None:
        """A call came; kind None: it shares its step with no other."""
        if ticket in self._waiting:
            raise ValueError(f"ticket {ticket} is already in")
        self._waiting[ticket] = _Call(caller, kind, rows)

    def remove(self, ticket: int) -> None:
        """It does not wait any more; one that is not in, or runs, is none of this machine's business."""
        self._waiting.pop(ticket, None)

    def poll(self, now: float) -> Run | Wait | None:
        """What to do; None: nothing until something changes."""
        if self._step or not self._waiting:
            return None
        tickets, is_full = self._next_step()
        if not is_full and now < self._gather_until and len(self._waiting) < self._expected:
            if self._gathered_from < 0:
                self._gathered_from = len(self._waiting)
            return Wait(self._gather_until)
        self._learn()
        for ticket in tickets:
            del self._waiting[ticket]
        self._step, self._began = len(tickets), now
        return Run(tickets)

    def ended(self, now: float) -> None:
        """The step is over, however it went."""
        answered, self._step = self._step, 0
        self._gather_until = float("-inf")
        if answered + len(self._waiting) < 2:  # a lone caller waits for nobody
            return
        if self._to_skip:
            self._to_skip -= 1
            return
        self._expected = answered + len(self._waiting)
        self._gather_until = now + min(MAX_GATHER, (now - self._began) * GATHER_SHARE)

    def _learn(self) -> None:
        """A step begins: whether the wait before it, if there was one, brought anybody."""
        if self._gathered_from >= 0:
            came = len(self._waiting) > self._gathered_from
            self._skips = 0 if came else min(MAX_SKIPPED, max(1, 2 * self._skips))
            self._to_skip = self._skips
            self._gathered_from = -1

    def _next_step(self) -> tuple[tuple[int, ...], bool]:
        """The calls of the next step, and whether no other could join them."""
        oldest, first = next(iter(self._waiting.items()))
        left = self._limit - first.rows
        if first.kind is None or left < 1:
            return (oldest,), True
        turns: dict[str, deque[int]] = {}
        for ticket, call in self._waiting.items():
            if call.kind == first.kind and ticket != oldest:
                turns.setdefault(call.caller, deque()).append(ticket)
        if first.caller in turns:  # who has one in has had its turn
            turns[first.caller] = turns.pop(first.caller)
        chosen = [oldest]
        while turns and left > 0:
            for caller in list(turns):
                ticket = turns[caller].popleft()
                if not turns[caller]:
                    del turns[caller]
                rows = self._waiting[ticket].rows
                if rows <= left:
                    chosen.append(ticket)
                    left -= rows
        return tuple(chosen), left < 1
