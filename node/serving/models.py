"""The models that a peer serves: added, found, switched over and removed here.

Each has its runner (a worker process, a server elsewhere, or the peer itself for built-in ones), which is
held here for as long as the model is wanted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.names import ModelUri, check_model_name, check_task, is_model_name
from modelnet_p2p.node.serving.backends.builtin import BuiltinBackend
from modelnet_p2p.node.serving.backends.contract import check_options
from modelnet_p2p.node.serving.backends.echo import EchoBackend
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.policy.safety import check_safe
from modelnet_p2p.node.serving.remembering import Remembered
from modelnet_p2p.node.serving.runner import InProcess, Runner, in_thread
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.upstream.address import is_address
from modelnet_p2p.node.serving.upstream.runner import Trouble, check_upstream, open_upstream
from modelnet_p2p.node.serving.worker.regions import Quota
from modelnet_p2p.node.serving.worker.worker import open_worker
from modelnet_p2p.tuning import Tuning

MAX_MODELS = 64  # each may be a process; more belong on another machine
FADING_SECONDS = 15.0  # of a replaced model: telling the network takes a few, callers remember for two


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
            found.served.in_place_of = old.served.source
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
    if source.model is None and not is_model_name(name):
        words = f"{source.spec[:200]} gives no name that a model may have ({name[:80]!r})"
        raise LocalError(Code.BAD_INPUT, words, hint="give it one of lower case letters: --model NAME")
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
