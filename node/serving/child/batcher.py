"""Calls of a model that awaits, in steps that they share: collected while one runs, answered each for itself.

Driven by the loop, whose other work goes on during a step: calls are read and decoded, and those whose
callers leave are taken out. An input is copied once more than without batching, when a step joins several;
answers are views on what the model gave for all. A call that finds the model idle is run by its own task and
pays nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import count

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend
from modelnet_p2p.node.serving.child.steps import Steps
from modelnet_p2p.node.serving.guarding import guard, guarded
from modelnet_p2p.node.serving.policy.batching import Batching, Run, Wait
from modelnet_p2p.payload import Value


class _Entry:
    """A call that waits for its answer. Once it is settled nothing here holds its input or what it raised."""

    __slots__ = ("_future", "params", "step", "value")

    def __init__(self, value: Value, params: Mapping[str, Value], future: asyncio.Future[Value]) -> None:
        self.value = value
        self.params = params
        self.step: _Step | None = None  # once it runs
        self._future: asyncio.Future[Value] | None = future

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return self._future is not None and not self._future.done()

    def settle(self, outcome: Value | LocalError) -> None:
        future, self._future = self._future, None
        self.value, self.params = None, {}
        if future is None or future.done():
            return
        if isinstance(outcome, LocalError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class _Step:
    """Calls that run together, and the task in which they do."""

    def __init__(self, entries: list[_Entry]) -> None:
        self.entries = entries
        self.task: asyncio.Task[None]

    @property
    def wanted(self) -> bool:
        return any(entry.wanted for entry in self.entries)


class Batcher:
    """In the loop, from the end of `load` on."""

    def __init__(self, backend: Backend, rows: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._backend = backend
        self._steps = Steps(backend)
        self._batching = Batching(rows)
        self._entries: dict[int, _Entry] = {}  # of the calls that wait
        self._tickets = count()
        self._step: _Step | None = None  # the loop itself holds tasks loosely
        self._timer: asyncio.TimerHandle | None = None

    async def invoke(self, value: Value, params: Mapping[str, Value], caller: str) -> Value:
        """One call's answer, as `invoke` of the backend; `caller` tells whose turn it is."""
        with guard(Code.MODEL_ERROR, "the model raised "):
            rows = self._backend.rows(value, params)
        ticket = next(self._tickets)
        kind, number = (None, 1) if rows is None else (rows.kind, rows.count)
        self._batching.add(ticket, caller, kind, number)
        decision = self._decide()
        if decision == Run((ticket,)):  # an idle model
            try:
                return await guarded(self._backend.invoke(value, params))
            finally:
                self._on_end()
        future: asyncio.Future[Value] = self._loop.create_future()
        entry = self._entries[ticket] = _Entry(value, params, future)
        self._follow(decision)
        try:
            return await future
        except asyncio.CancelledError:
            await self._leave(ticket, entry)
            raise
        finally:
            del future, entry  # what the model raised holds this frame, and would hold itself

    async def _leave(self, ticket: int, entry: _Entry) -> None:
        """Its caller has left. A step of which others wait for something goes on without it; one that nobody
        waits for is stopped, and that it has stopped is waited for: the peer must know."""
        self._batching.remove(ticket)
        self._entries.pop(ticket, None)
        if (step := entry.step) is not None and not step.wanted:
            step.task.cancel()
            await asyncio.wait({step.task})

    # --- steps ---

    def _decide(self) -> Run | Wait | None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._batching.poll(self._loop.time())

    def _follow(self, decision: Run | Wait | None) -> None:
        match decision:
            case Run(tickets):
                self._step = step = _Step([self._entries.pop(ticket) for ticket in tickets])
                for entry in step.entries:
                    entry.step = step
                step.task = self._loop.create_task(self._run(step))
            case Wait(until):
                self._timer = self._loop.call_at(until, self._on_time)

    def _on_time(self) -> None:
        self._follow(self._decide())

    def _on_end(self) -> None:
        self._batching.ended(self._loop.time())
        self._follow(self._decide())

    async def _run(self, step: _Step) -> None:
        try:
            await self._steps.answer(step.entries)
        except asyncio.CancelledError:  # by the model itself, if anybody still waits
            for entry in step.entries:
                entry.settle(LocalError(Code.MODEL_ERROR, "the model raised CancelledError"))
        finally:
            self._step = None
            self._on_end()
