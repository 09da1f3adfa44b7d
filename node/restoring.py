"""What an earlier run had published is served again, and what it had withdrawn is told of again.

A model that is remembered, and whose files are as they were, is announced at once: a peer with ten of them is
ready before the first is loaded. They are loaded then, few at a time, for an announced model should answer
soon, and one that cannot be loaded any more should not stay announced; a call loads its model at once. All
others are loaded before anything is said of them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.hosting import Hosting
from modelnet_p2p.node.notices import quiet
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.remembering import Remembered
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.upstream.address import is_address
from modelnet_p2p.records import BadRecord, admit

log = logging.getLogger(__name__)

MAX_RESTORED_AT_ONCE = 4  # models that a start loads side by side: each may be a process that imports torch
MAX_WARMED_AT_ONCE = 2  # ... once the peer is ready, for calls are answered meanwhile


class Restoring:
    """Brings back what `state` remembers; None: there is nothing."""

    def __init__(
        self, hosting: Hosting, models: Models, publisher: Publisher, state: State | None, network: str
    ) -> None:
        self._hosting = hosting
        self._models = models
        self._publisher = publisher
        self._state = state
        self._network = network
        self._loading = trio.CapacityLimiter(MAX_RESTORED_AT_ONCE)
        self._warming = trio.CapacityLimiter(MAX_WARMED_AT_ONCE)
        self._cold: list[Served] = []  # announced as they were remembered
        self._changed: deque[Served] = deque()  # not what they were announced as
        self._has_changed = trio.Event()
        models.on_changed = self._on_changed

    async def restore(self) -> None:
        """Returns when all of it is served again, or is known not to be."""
        if self._state is None:
            return
        try:
            self._state.settle(time.time())
        except LocalError as error:
            log.error("what was withdrawn long ago cannot be forgotten: %s", error.message)
        # a server's models follow what it does: `node/upstreams/` sees to them
        mine = {name: fields for name, fields in self._state.published.items() if not is_address(name)}
        self._hosting.unrestored |= dict.fromkeys(mine, "loading")
        async with trio.open_nursery() as nursery:
            for model, owed in list(self._state.withdrawn.items()):
                nursery.start_soon(self._restore_tombstone, model, owed.envelope)
            for model, fields in mine.items():
                nursery.start_soon(self._restore_model, model, fields, self._state)

    async def keep(self) -> None:
        """Load what was announced from memory, announce anew what is not as it was told; never returns."""
        async with trio.open_nursery() as nursery:
            for served in self._cold:
                nursery.start_soon(self._warm, served)
            self._cold.clear()
            while True:
                await self._has_changed.wait()
                self._has_changed = trio.Event()
                while self._changed:
                    await self._announce_anew(self._changed.popleft())

    async def _restore_tombstone(self, model: str, envelope: bytes) -> None:
        try:
            sealed = admit(envelope, network=self._network, now_us=time.time_ns() // 1000)
            await self._publisher.bury(sealed)
        except BadRecord as bad:
            log.error("the withdrawal of %s cannot be told again: %s", model, bad)
        except ModelnetError as error:
            log.warning("the withdrawal of %s is not told yet: %s", model, error.message)

    async def _restore_model(self, model: str, fields: Mapping[str, object], state: State) -> None:
        try:
            source = Source.from_map(fields)
        except ValueError as error:
            self._hosting.lost(model, f"its remembered source is damaged: {error}")
            return
        try:
            remembered = await _current(model, state)
            if remembered is not None:
                await self._announce(model, source, remembered)
                return
            async with self._loading:
                await self._hosting.publish(source, quiet, remember=False)
            self._note(model, state)
        except LocalError as error:
            self._hosting.lost(model, error.message)
        except ModelnetError as error:
            log.warning("%s is served, but the network is not told yet: %s", model, error.message)

    async def _announce(self, model: str, source: Source, remembered: Remembered) -> None:
        """Serve it, and tell the network, before it is loaded."""
        try:
            await self._hosting.publish(source, quiet, remember=False, remembered=remembered)
        finally:  # it is served, too, where not enough others could be told
            if (served := self._models.get(model)) is not None:
                self._cold.append(served)

    def _note(self, model: str, state: State) -> None:
        """What it turned out to be, for the next start; that it is published is on disk already."""
        served = self._models.get(model)
        try:
            if served is not None:
                self._hosting.keep(served, state.last_seq(model))
        except LocalError as error:
            log.warning("what %s is will be found out at the next start again: %s", model, error.message)

    # --- what was announced from memory ---

    async def _warm(self, served: Served) -> None:
        async with self._warming:
            try:
                await served.warm()
            except LocalError as error:
                if error.code is not Code.BUSY:  # else this machine has no room now: it is left to a call
                    await self._hosting.give_up(served, error.message)

    def _on_changed(self, served: Served) -> None:
        self._changed.append(served)
        self._has_changed.set()

    async def _announce_anew(self, served: Served) -> None:
        name = served.description.name
        if self._models.get(name) is not served:
            return
        log.warning("%s is not what it was when it was announced: it is announced anew", name)
        try:
            await self._hosting.publish(served.source, quiet)
        except LocalError as error:
            await self._hosting.give_up(served, error.message)
        except ModelnetError as error:
            log.warning("%s is served, but the network is not told yet: %s", name, error.message)


async def _current(model: str, state: State) -> Remembered | None:
    """What an earlier run knew of it, if that still holds; None: it is loaded before it is announced."""
    fields = state.described.get(model)
    if fields is None:
        return None
    try:
        remembered = Remembered.from_map(fields)
    except ValueError as error:
        log.info("%s is loaded before it is announced: %s", model, error)
        return None
    is_current = await trio.to_thread.run_sync(lambda: remembered.is_current)
    return remembered if is_current else None
