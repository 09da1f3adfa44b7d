"""The models that a peer serves: added, found, called and removed here.

Each model has its runner (a worker process, or the peer itself for built-in ones) and its
admission. A call ends exactly once: with an answer or with a typed error.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol, TypeVar

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.names import ModelUri, check_model_name, check_task
from modelnet_p2p.node.serving.backends.builtin import BuiltinBackend
from modelnet_p2p.node.serving.backends.contract import (
    METHODS,
    Backend,
    Emit,
    check_options,
    run_method,
    unknown_method,
)
from modelnet_p2p.node.serving.backends.echo import EchoBackend
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.policy.admission import Admission, Queued, Refused
from modelnet_p2p.node.serving.policy.recent import Recent
from modelnet_p2p.node.serving.policy.safety import check_safe
from modelnet_p2p.node.serving.policy.scarcity import no_more
from modelnet_p2p.node.serving.remembering import Remembered
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.upstream.address import is_address
from modelnet_p2p.node.serving.upstream.runner import Trouble, check_upstream, open_upstream
from modelnet_p2p.node.serving.worker.regions import Quota
from modelnet_p2p.node.serving.worker.worker import open_worker
from modelnet_p2p.payload import Value
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)

MAX_MODELS = 64  # each may be a process; more belong on another machine
FADING_SECONDS = 15.0  # of a replaced model: telling the network takes a few, callers remember for two

T = TypeVar("T")

__all__ = ["Answer", "Models", "Served", "Source", "open_models"]


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended well; `value` is None where items were emitted."""

    value: Value
    queue_us: int
    model_us: int


class Runner(Protocol):
    """What runs a model's calls."""

    @property
    def waits(self) -> bool: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def is_down(self) -> bool: ...

    @property
    def remembered(self) -> Remembered | None: ...

    on_changed: Callable[[], None]

    async def describe(self) -> Description: ...

    async def warm(self) -> None: ...

    async def call(
        self, method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str = ""
    ) -> Value: ...

    def allocate(self, size: int) -> memoryview | None: ...


class InProcess:
    """Runs a built-in model in the peer's own threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.waits = backend.waits
        self.on_changed: Callable[[], None] = lambda: None  # it never does

    pid = None  # none of its own
    is_down = False
    remembered = None  # it is loaded in no time

    async def warm(self) -> None:
        pass  # `describe` has loaded it

    async def describe(self) -> Description:
        try:
            await self._backend.load()
        except RuntimeError as error:  # no thread could be started
            raise no_more("cannot load a built-in model", error) from error
        return self._backend.describe()

    async def call(
        self, method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str = ""
    ) -> Value:
        if method == "invoke" and not self.waits:  # a few lines of ours: nothing to guard
            return await self._backend.invoke(value, params)
        return await run_method(self._backend, False, method, value, params, emit)

    def allocate(self, size: int) -> memoryview | None:
        return None  # the peer's own memory is as good as any


async def in_thread(step: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(step)


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
        self.waits = (
            runner.waits
        )  # a call of it may take time: it needs a deadline, and a watch on its caller
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


@dataclass(slots=True)
class _Entry:
    served: Served
    ended: trio.Event  # set: the model is no longer wanted


class _Starting(Protocol):
    """trio.TaskStatus, which the stubs of trio-typing (a dependency of libp2p's) do not know."""

    def started(self, value: _Entry | ModelnetError, /) -> None: ...


class Models:
    """By name; one version of a name at a time. A name published again is switched over: the new one
    is loaded first, then takes the calls, and the old one ends when its last call has. If it is of another
    digest it stays a while beside the new one, for those who have not heard of that yet."""

    def __init__(self, tuning: Tuning, nursery: trio.Nursery) -> None:
        self._tuning = tuning
        self._nursery = nursery
        self._entries: dict[str, _Entry] = {}
        self._fading: dict[str, _Entry] = {}  # the one before, of another digest
        self.shared = Quota()  # memory shared with all workers
        self.on_trouble: Trouble = lambda spec, error: None  # with a server behind a model
        self.on_changed: Callable[[Served], None] = lambda served: None  # it is not what it was told to be

    async def add(self, source: Source, remembered: Remembered | None = None) -> Served:
        """Load and describe a model, then serve it; raises LocalError that names the file or module.

        One of which something is `remembered` is served at once, and loaded by its `warm` or its first call.
        """
        _check_source(source)
        if source.model is not None:  # known before it is loaded
            self._check_room(ModelUri.parse(source.model).name)
        found = await self._nursery.start(self._host, source, remembered)
        if isinstance(found, ModelnetError):
            raise found
        assert isinstance(found, _Entry)
        name = found.served.description.name
        try:
            self._check_room(name)
        except LocalError:
            found.ended.set()
            raise
        old = self._entries.get(name)
        self._entries[name] = found
        if old is not None:
            self._replace(name, old, found)
        return found.served

    def _replace(self, name: str, old: _Entry, new: _Entry) -> None:
        """Callers find models in records: the old digest is asked for until the new one is known."""
        self._end_fading(name)
        digest = old.served.description.digest
        if digest is None or digest == new.served.description.digest:
            old.ended.set()
            return
        self._fading[name] = old
        self._nursery.start_soon(self._fade, name, old)

    async def _fade(self, name: str, entry: _Entry) -> None:
        with trio.move_on_after(FADING_SECONDS):
            await entry.ended.wait()
        entry.ended.set()
        if self._fading.get(name) is entry:
            del self._fading[name]

    def _end_fading(self, name: str) -> None:
        if (entry := self._fading.pop(name, None)) is not None:
            entry.ended.set()

    def _check_room(self, name: str) -> None:
        """Raises LocalError (busy) when `name` would be one model too many; one that is there is replaced."""
        if name not in self._entries and len(self._entries) >= MAX_MODELS:
            raise LocalError(
                Code.BUSY,
                f"this peer serves {MAX_MODELS} models already",
                hint="unpublish one of them, or publish under one of their names to replace it",
                retryable=False,
            )

    async def rehearse(self, source: Source) -> Description:
        """What `add` would find; the model is loaded and let go again, and serves nobody."""
        _check_source(source)
        async with self._open_runner(source) as runner:
            return _named(await runner.describe(), source)

    async def remove(self, name: str) -> bool:
        """No longer serve `name`; False if nobody did. Calls in flight may still end well."""
        self._end_fading(name)
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.ended.set()
        return entry is not None

    def get(self, name: str, version: str = "", digest: bytes | None = None) -> Served | None:
        """What is served under `name`, if it is of that version; of two digests the one that is meant."""
        fading = self._fading.get(name)
        if fading is not None and fading.served.description.digest == digest is not None:
            entry: _Entry | None = fading
        else:
            entry = self._entries.get(name)
        if entry is None or (version and version != entry.served.description.version):
            return None
        return entry.served

    def at_work(self) -> bool:
        """Whether any of them runs a call just now."""
        return any(entry.served.working for entry in self._entries.values())

    def all(self) -> dict[str, Served]:
        return {name: entry.served for name, entry in self._entries.items()}

    async def _host(self, source: Source, remembered: Remembered | None, task_status: _Starting) -> None:
        """Holds a model's runner for as long as the model is wanted. Errors go back as values: an
        exception would end every other model, too."""
        async with self._open_runner(source, remembered) as runner:
            try:
                served = Served(source, _named(await runner.describe(), source), runner)
                runner.on_changed = lambda: self.on_changed(served)
            except ModelnetError as error:
                task_status.started(error)
                return
            entry = _Entry(served, trio.Event())
            task_status.started(entry)
            await entry.ended.wait()
            with trio.move_on_after(self._tuning.shutdown_grace):
                await served.idle()

    @asynccontextmanager
    async def _open_runner(
        self, source: Source, remembered: Remembered | None = None
    ) -> AsyncIterator[Runner]:
        if EchoBackend.claims(source.spec):
            yield InProcess(EchoBackend(source, in_thread))
        elif BuiltinBackend.claims(source.spec):
            yield InProcess(BuiltinBackend(source, in_thread))
        elif is_address(source.spec):
            async with open_upstream(source, self.on_trouble) as upstream:
                yield upstream
        else:
            async with open_worker(source, self._tuning, self.shared, remembered) as worker:
                yield worker


def _check_source(source: Source) -> None:
    """What is known without a worker; raises LocalError (unsafe, bad-input)."""
    check_safe(source.spec)
    for built_in in (EchoBackend, BuiltinBackend):
        if built_in.claims(source.spec):
            check_options(built_in, source)
    if is_address(source.spec):
        check_upstream(source)


def _named(description: Description, source: Source) -> Description:
    """`description` with the publisher's name and task; under another name or task than the owner
    sealed, the manifest is not this model's any more; one that the publisher brings is checked with the
    offer. Raises LocalError (bad-input)."""
    name, version, task = description.name, description.version, source.task or description.task
    if source.model is not None:
        uri = ModelUri.parse(source.model)
        name, version = uri.name, uri.version or (version if uri.name == name else "")
    check_model_name(name)
    check_task(task)
    same = (name, version, task) == (description.name, description.version, description.task)
    envelope = source.manifest or (description.manifest_envelope if same else None)
    return replace(description, name=name, version=version, task=task, manifest_envelope=envelope)


@asynccontextmanager
async def open_models(tuning: Tuning) -> AsyncIterator[Models]:
    """The models of one peer. Leaving the scope ends their workers: asked to when it is left in order,
    so that models can close, and at once when it is cancelled."""
    async with trio.open_nursery() as nursery:
        models = Models(tuning, nursery)
        yield models
        for name in models.all():
            await models.remove(name)
        nursery.cancel_scope.deadline = trio.current_time() + tuning.shutdown_grace
