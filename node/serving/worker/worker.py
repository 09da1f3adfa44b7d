"""A model in a worker process, for as long as it is served: one process after the other.

A process that is gone, whatever of, is started again; callers that come meanwhile wait for that start, unless
the model dies again and again (see `restarting`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.exchange import Call
from modelnet_p2p.frames import MAX_LABEL_BYTES
from modelnet_p2p.node.serving.backends.contract import Emit
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.policy.restarting import Restarts
from modelnet_p2p.node.serving.remembering import Remembered, Stamp, read_stamps
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.worker.process import Process
from modelnet_p2p.node.serving.worker.regions import Quota
from modelnet_p2p.payload import Value
from modelnet_p2p.tuning import Tuning

LOAD = "load"
STAMPS = "stamps"  # beside the description, in the answer to it
LOAD_TIMEOUT = 600.0  # a model of tens of GB from a slow disk; longer is a hang


class _Start:
    """One start of a worker's process, now or later, for all who wait for it."""

    def __init__(self, at: float) -> None:
        self.at = at  # trio time
        self.ended = trio.Event()
        self.outcome: Process | ModelnetError | None = None  # None: it was given up


class Worker:
    """A model in a process of its own, which is started again whenever it is gone."""

    waits = True

    def __init__(
        self,
        source: Source,
        tuning: Tuning,
        nursery: trio.Nursery,
        quota: Quota,
        remembered: Remembered | None = None,
    ) -> None:
        """What is `remembered` of the model is told of it before any process runs."""
        self._source = source
        self._grace = tuning.cancel_grace
        self._nursery = nursery
        self._quota = quota
        self._process: Process | None = None
        self._starting: _Start | None = None
        self._restarts = Restarts()
        self._retired = False
        self._description = remembered.description if remembered else None  # as it was told to others
        self.remembered = remembered  # as it was loaded last, where its files tell whether that still holds
        self.is_changed = False  # it was loaded again, and is not what was told: it answers no more
        self.on_changed: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int | None:
        """Of the running process, None between two of them."""
        return self._process.pid if self._process and self._process.alive else None

    @property
    def is_down(self) -> bool:
        """Whether it dies again and again: no call is worth making now."""
        return self._restarts.is_down and (self._starting is not None or self.pid is None)

    async def describe(self) -> Description:
        """Of the model, started if nothing is known of it; raises LocalError that says why it cannot be."""
        if self._description is None:
            await self._ready()
        assert self._description is not None
        return self._description

    async def warm(self) -> None:
        """Have it running; raises as `describe`."""
        await self._ready()

    async def call(
        self, method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str = ""
    ) -> Value:
        """One call; raises LocalError, `model-error` for whatever the model does, not-found when it is no
        longer served, busy when this machine has nothing left to run it with, or it dies all the time."""
        if self.is_down and self._starting is not None:
            raise self._down(self._starting)
        try:
            process = await self._ready()
        except ModelnetError as error:
            if error.code in (Code.BUSY, Code.NOT_FOUND):
                raise
            raise LocalError(
                Code.MODEL_ERROR,
                f"{self._source.shown} did not start again: {error.message}",
                hint=error.hint,
            ) from error
        if self.is_changed:
            raise LocalError(
                Code.BUSY,
                f"{self._source.shown} has changed since it was announced, and is announced anew",
                hint="try again later, or another provider",
            )
        call = Call(self._source.spec[:512], value, method, params, key=self._turns(caller))
        return await process.call(call, emit, self._grace)

    def _turns(self, caller: str) -> str:
        """Who calls, for a model in whose steps callers take turns; no other is told."""
        batches = self._description.batches if self._description is not None else 1
        return caller[:MAX_LABEL_BYTES] if batches > 1 else ""

    def allocate(self, size: int) -> memoryview | None:
        """Memory that the process reads, too; None where there is none, or no process runs now."""
        return self._process.allocate(size) if self._process and self._process.alive else None

    async def _ready(self) -> Process:
        """The running process, with its model loaded; callers that come during a start wait for that one."""
        if self._retired:
            raise self._gone()
        if self._starting is None:
            if self._process is not None and self._process.alive:
                return self._process
            self._on_death(self._process)
        start = self._starting
        assert start is not None
        await start.ended.wait()
        match start.outcome:
            case Process() as process:
                return process
            case None:
                raise self._gone()
            case error:
                raise error

    def _gone(self) -> LocalError:
        return LocalError(Code.NOT_FOUND, f"{self._source.shown} is no longer served here")

    def _down(self, start: _Start) -> LocalError:
        soon = start.at - trio.current_time()
        when = f"started again in {soon:.2g} s" if soon > 0 else "being started again"
        return LocalError(
            Code.BUSY,
            f"{self._source.shown} has died {self._restarts.row} times in a row, and is {when}",
            hint="try again later, or another provider",
        )

    def _on_death(self, process: Process | None) -> None:
        """That one is gone, whoever sees it first: the next start is set. None: there was none."""
        if self._starting is not None or self._process is not process or self._retired:
            return
        now = trio.current_time()
        self._process = None
        self._begin(now if process is None else self._restarts.on_death(now, counts=process.is_crash))

    def _begin(self, at: float) -> None:
        self._starting = _Start(at)
        # not in a caller's scope: a model may take longer to load than a call may last
        self._nursery.start_soon(self._start, self._starting)

    async def _start(self, start: _Start) -> None:
        try:
            await trio.sleep_until(start.at)
            if not self._retired:
                start.outcome = await self._run()
        except ModelnetError as error:
            start.outcome = error
        finally:
            self._starting = None
            start.ended.set()
        if self._description is not None and isinstance(start.outcome, ModelnetError) and not self._retired:
            self._begin(self._restarts.on_death(trio.current_time()))  # it was served: it will be again

    async def _run(self) -> Process:
        """A process with the model in it, watched from now on."""
        self._process = process = await Process.start(self._source, self._quota)
        self._nursery.start_soon(self._live, process)
        loaded, stamps = await self._load(process)
        self.remembered = None if stamps is None else Remembered(loaded, stamps)
        self._description = self._description or loaded
        self._restarts.on_start(trio.current_time())
        if not self.is_changed and not _is_same(loaded, self._description):
            self.is_changed = True
            self.on_changed()
        return process

    async def _live(self, process: Process) -> None:
        await process.watch()
        if self._description is not None:  # else nobody serves it: it never was loaded
            self._on_death(process)

    async def _load(self, process: Process) -> tuple[Description, tuple[Stamp, ...] | None]:
        source = replace(self._source, environ={})  # it has its environment
        with trio.move_on_after(LOAD_TIMEOUT):
            try:
                fields = await process.call(Call(LOAD, source.to_map(), LOAD), self._no_items, self._grace)
                description = Description.from_map(fields)
                stamps = fields.get(STAMPS) if isinstance(fields, dict) else None
                return description, None if stamps is None else read_stamps(stamps)
            except LocalError as error:
                started = process.alive
                process.kill("its model could not be loaded")
                if started or error.code is not Code.MODEL_ERROR:
                    raise
                if process.crash:
                    raise LocalError(
                        Code.BAD_INPUT,
                        f"the worker of {self._source.spec[:200]} died ({process.crash}) while it loaded it",
                        hint="with PYTHONFAULTHANDLER=1 before `publish` its last lines on stderr say where;"
                        " signal 9 is mostly a lack of memory",
                    ) from error
                raise LocalError(
                    Code.BAD_INPUT,
                    f"{self._source.interpreter} did not start a worker: {error.message}",
                    hint="its last lines on stderr say why; modelnet-p2p must be installed for that Python",
                ) from error
            except ValueError as error:
                process.kill(f"its description makes no sense: {error}")
                raise LocalError(Code.BAD_INPUT, f"{self._source.spec}: {error}") from error
        process.kill("its model did not load in time")
        raise LocalError(Code.DEADLINE, f"{self._source.spec} did not load within {LOAD_TIMEOUT:g} s")

    async def _no_items(self, value: Value) -> None:
        raise LocalError(Code.MODEL_ERROR, f"{self._source.spec} streams while it is loaded")

    def retire(self) -> None:
        """From now on calls are refused; nothing starts any more."""
        self._retired = True

    async def close(self) -> None:
        self.retire()
        if self._process is not None and self._process.alive:
            await self._process.close(self._grace)


def _is_same(one: Description, other: Description) -> bool:
    """But for how long a call of it took, and what its publisher was told."""
    return replace(one, latency_us=None, notes=()) == replace(other, latency_us=None, notes=())


@asynccontextmanager
async def open_worker(
    source: Source, tuning: Tuning, quota: Quota, remembered: Remembered | None = None
) -> AsyncIterator[Worker]:
    """A worker for `source`; its process starts with the first question that needs it and ends with this
    scope. Its shared memory counts into `quota`."""
    async with trio.open_nursery() as nursery:
        worker = Worker(source, tuning, nursery, quota, remembered)
        try:
            yield worker
            await worker.close()
        finally:
            worker.retire()
        nursery.cancel_scope.cancel()
