"""Calls of a model that blocks, in steps that they share: all of it in the model's own thread.

Carrying each step from the loop to that thread and back takes longer than a small model does. So the thread
reads what calls have come, each of which waits here as a coroutine that is suspended, makes a step of some of
them, and goes on with each.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from itertools import count
from typing import TYPE_CHECKING

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend
from modelnet_p2p.node.serving.child.steps import Steps
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.node.serving.policy.batching import Batching, Run
from modelnet_p2p.payload import Value

if TYPE_CHECKING:
    from modelnet_p2p.node.serving.child.line import Line, Work


class Pending:
    """A call that waits for its answer; awaiting it suspends the call, and whoever drives that gets this."""

    __slots__ = ("_outcome", "_settled", "line", "params", "ticket", "value", "work")

    def __init__(self, ticket: int, value: Value, params: Mapping[str, Value]) -> None:
        self.ticket = ticket
        self.value = value
        self.params = params
        self.line: Line  # these two by whoever drives it
        self.work: Work
        self._outcome: Value | LocalError = None
        self._settled = False

    def __await__(self) -> Generator[Pending, None, Value]:
        yield self
        outcome, self._outcome = self._outcome, None
        try:
            if isinstance(outcome, LocalError):
                raise outcome
            return outcome
        finally:
            del outcome  # what the model raised holds this frame, and would hold itself

    @property
    def wanted(self) -> bool:
        """Whether its caller is still there: looked up, for nothing else here would tell."""
        return not self._settled and not self.line.left and not self.line.is_gone()

    @property
    def settled(self) -> bool:
        return self._settled

    def settle(self, outcome: Value | LocalError) -> None:
        self.value, self.params = None, {}
        self._outcome, self._settled = outcome, True


class ThreadBatcher:
    """Used by `ThreadLines` alone, in the model's thread."""

    def __init__(self, backend: Backend, rows: int) -> None:
        self._backend = backend
        self._steps = Steps(backend)
        self._batching = Batching(rows)
        self._waiting: dict[int, Pending] = {}
        self._tickets = count()

    async def invoke(self, value: Value, params: Mapping[str, Value], caller: str) -> Value:
        """One call's answer, as `invoke` of the backend; `caller` tells whose turn it is."""
        with guard(Code.MODEL_ERROR, "the model raised "):
            rows = self._backend.rows(value, params)
        pending = Pending(next(self._tickets), value, params)
        del value
        kind, number = (None, 1) if rows is None else (rows.kind, rows.count)
        self._batching.add(pending.ticket, caller, kind, number)
        self._waiting[pending.ticket] = pending
        return await pending

    def take(self, now: float) -> list[Pending] | float | None:
        """The calls of the step that begins now; or until when the next one waits for others; or None."""
        match self._batching.poll(now):
            case Run(tickets):
                return [self._waiting.pop(ticket) for ticket in tickets]
            case None:
                return None
            case wait:
                return wait.until

    async def answer(self, step: list[Pending]) -> None:
        """Settle those of the step whose callers are there; never suspended, where the backend blocks."""
        await self._steps.answer(step)

    def ended(self, now: float) -> None:
        """The step is over, however it went."""
        self._batching.ended(now)

    def drop_all(self) -> list[Pending]:
        """The calls that wait, of which none will run."""
        left = list(self._waiting.values())
        self._waiting.clear()
        return left
