"""One step of a model for several calls: made together, or in halves where that fails, down to one to blame.

Who drives it, the event loop or the model's own thread, only says what a call that waits is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend
from modelnet_p2p.node.serving.guarding import guard, guarded
from modelnet_p2p.payload import Value

log = logging.getLogger(__name__)


class Entry(Protocol):
    """A call that waits for its answer."""

    value: Value
    params: Mapping[str, Value]

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""

    def settle(self, outcome: Value | LocalError) -> None:
        """That is its answer; it lets go of its input."""


class Steps:
    """The steps of one model."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def answer(self, entries: Sequence[Entry]) -> None:
        """Settle all of them that are still wanted."""
        wanted = [entry for entry in entries if entry.wanted]
        if len(wanted) < 2:
            for entry in wanted:
                await self._answer_alone(entry)
            return
        outputs = await self._together(wanted)
        if outputs is None:
            middle = len(wanted) // 2
            await self.answer(wanted[:middle])
            await self.answer(wanted[middle:])
            return
        for entry, output in zip(wanted, outputs, strict=True):
            entry.settle(output)

    async def _together(self, entries: Sequence[Entry]) -> list[Value | LocalError] | None:
        """Their answers; None where the model would not have them together."""
        calls = [(entry.value, entry.params) for entry in entries]
        try:
            with guard(Code.MODEL_ERROR, f"a step of {len(calls)} calls raised ", level=logging.INFO):
                outputs = await self._backend.invoke_many(calls)
                if len(outputs) != len(calls):
                    raise ValueError(f"{len(outputs)} answers")
                return outputs
        except LocalError as error:
            log.info("a step of %d calls is made again in parts: %s", len(calls), error.message)
            return None

    async def _answer_alone(self, entry: Entry) -> None:
        try:
            entry.settle(await guarded(self._backend.invoke(entry.value, entry.params)))
        except LocalError as error:
            entry.settle(error)
