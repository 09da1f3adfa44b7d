"""One model that is served: its calls let in, run and counted.

A call ends exactly once: with an answer or with a typed error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.serving.backends.contract import METHODS, Emit, unknown_method
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.policy.admission import Admission, Queued, Refused
from modelnet_p2p.node.serving.policy.recent import Recent
from modelnet_p2p.node.serving.remembering import Remembered
from modelnet_p2p.node.serving.runner import Runner
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended well; `value` is None where items were emitted."""

    value: Value
    queue_us: int
    model_us: int


class _Turn:
    """A call's place in the queue."""

    __slots__ = ("come", "evicted")

    def __init__(self) -> None:
        self.come = trio.Event()
        self.evicted = False  # another caller has its place: it never runs


class Served:
    """One model that is served. `source` is what was published, `description` what it turned out to be."""

    def __init__(self, source: Source, description: Description, runner: Runner) -> None:
        self.source = source
        self.description = description
        self.in_place_of: Source | None = None  # what was served by its name when it came
        self.waits = runner.waits  # a call may take time: it needs a deadline, and a watch on its caller
        self._runner = runner
        self._admission = Admission(description.places)
        self._tickets = count()
        self._turns: dict[int, _Turn] = {}  # of the calls that wait
        self._emptied: trio.Event | None = None  # once somebody waits for that
        self._calls = 0
        self._faults = 0
        self.recent = Recent(trio.current_time())

    @property
    def load(self) -> float:
        """0 (idle) to 1 (the next call would be refused)."""
        return 1.0 if self._runner.is_down else self._admission.load

    @property
    def state(self) -> str:
        """`serving`, or `crashing`: its worker process dies again and again, and is started again later."""
        return "crashing" if self._runner.is_down else "serving"

    @property
    def remembered(self) -> Remembered | None:
        """What may be told of it at the next start before it is loaded."""
        return self._runner.remembered

    async def warm(self) -> None:
        """Have it running, where it was added from memory; raises LocalError that says why it cannot."""
        await self._runner.warm()

    @property
    def working(self) -> bool:
        """Whether a call of it runs."""
        return self._admission.in_flight > 0

    @property
    def pid(self) -> int | None:
        """Of the model's worker process; None between two lives of it, and for a built-in model."""
        return self._runner.pid

    def allocate(self, size: int) -> memoryview | None:
        """Where the model would like to have `size` bytes of a call that is on its way; None: anywhere."""
        return self._runner.allocate(size)

    def stats(self) -> dict[str, int]:
        """Calls now running and waiting; all that ever came, and those of them that ended in a fault."""
        return {
            "in_flight": self._admission.in_flight,
            "queued": self._admission.queued,
            "calls": self._calls,
            "faults": self._faults,
        }

    async def run(
        self,
        method: str,
        value: Value,
        params: Mapping[str, Value],
        emit: Emit,
        deadline: float,
        caller: str = "",
    ) -> Answer:
        """Run one call until `deadline` (trio time). A slow `emit` slows the model; callers take turns.

        Raises ModelnetError: busy, unknown-method, bad-input, model-error, too-large, deadline, and
        whatever `emit` raises. Leaving early cancels the call; its slot is free when it has stopped.
        """
        self._calls += 1
        arrived = trio.current_time()
        try:
            if method not in METHODS:
                raise unknown_method(method)
            ticket = next(self._tickets)
            turn = self._enter(ticket, caller)
            if turn is None and not self.waits:
                try:
                    output = await self._runner.call(method, value, params, emit, caller)
                finally:
                    self._leave(ticket)
                ended = trio.current_time()
                self.recent.on_answer(arrived, ended)
                return Answer(output, 0, round((ended - arrived) * 1e6))
            admitted = None
            try:
                with trio.CancelScope(deadline=deadline) as scope:
                    if turn is not None:
                        await turn.come.wait()
                        if turn.evicted:
                            raise self._busy()
                    admitted = trio.current_time()
                    output = await self._runner.call(method, value, params, emit, caller)
                ended = trio.current_time()
            finally:
                if turn is None or not turn.evicted:
                    self._leave(ticket)
            if scope.cancelled_caught:
                waited = "waiting for its turn" if admitted is None else "running"
                raise LocalError(
                    Code.DEADLINE,
                    f"the call's time was over while it was {waited}",
                    hint="allow a longer timeout",
                )
            assert admitted is not None
            self.recent.on_answer(arrived, ended)
            return Answer(output, round((admitted - arrived) * 1e6), round((ended - admitted) * 1e6))
        except ModelnetError as error:
            self._faults += 1
            if isinstance(error, LocalError):  # else it was the caller who left
                self.recent.on_fault(error.code, error.message, trio.current_time())
            raise

    def _enter(self, ticket: int, caller: str) -> _Turn | None:
        """None: the call may run now; else when its turn comes. Raises LocalError (busy)."""
        match self._admission.enter(ticket, caller):
            case Refused():
                raise self._busy()
            case Queued(evicted):
                if evicted is not None:
                    out = self._turns.pop(evicted)
                    out.evicted = True
                    out.come.set()
                turn = self._turns[ticket] = _Turn()
                return turn
        return None

    def _leave(self, ticket: int) -> None:
        self._turns.pop(ticket, None)  # one that gave up waiting
        following = self._admission.leave(ticket)
        if following is not None:
            self._turns.pop(following).come.set()
        if self._emptied is not None and self._admission.empty:
            self._emptied.set()

    def _busy(self) -> LocalError:
        return LocalError(
            Code.BUSY,
            f"{self.description.name} runs {self._admission.in_flight} calls, "
            f"and {self._admission.queued} wait",
            hint="try again later, or another provider",
        )

    async def idle(self) -> None:
        """Returns when no call runs or waits."""
        while not self._admission.empty:
            if self._emptied is None or self._emptied.is_set():
                self._emptied = trio.Event()
            await self._emptied.wait()
