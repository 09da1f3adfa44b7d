"""The thread of a worker in which a sync model lives, and what is carried there and back.

A pool of one thread would do, but for this: it holds what it was given a moment longer than its caller
waits for it, and a chain of futures holds what a model raised until the next collection of garbage. Either
would be the input of a call, whose memory should be free when the call ends.

A model that blocks is called by this thread itself, see thread_lines: then its steps are not carried at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from modelnet_p2p.node.serving.child.thread_lines import ThreadLines

log = logging.getLogger(__name__)

T = TypeVar("T")


class Errand:
    """A step for the thread, and how it ended. What is taken out of it is not in it any more."""

    __slots__ = ("_error", "_future", "_result", "_step")

    def __init__(self, step: Callable[[], object], future: asyncio.Future[Any]) -> None:
        # Any: each future takes what its own step gives
        self._step: Callable[[], object] | None = step
        self._future: asyncio.Future[Any] | None = future
        self._result: object = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """In the thread: what the step raises is carried to the loop, where the model's guard waits."""
        step, self._step = self._step, None
        assert step is not None
        try:
            self._result = step()
        except BaseException as error:  # noqa: BLE001
            self._error = error

    def settle(self) -> None:
        """In the loop, when it was run."""
        future, result, error = self._future, self._result, self._error
        self._future = self._result = self._error = None
        if future is None or future.done():
            return
        if isinstance(error, StopIteration):  # a future cannot carry it
            future.set_exception(RuntimeError("StopIteration left the model"))
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def wait_on(self, future: asyncio.Future[Any]) -> bool:
        """In the loop: let `future` take the place of one that was cancelled; False if it is settled."""
        if self._future is None:
            return False
        self._future = future
        return True


class ModelThread:
    """The one thread of a sync model: it may keep what is bound to its thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lines: ThreadLines | None = None  # while it serves them itself
        self._process = os.getpid()

    async def __call__(self, step: Callable[[], T]) -> T:
        """Runs `step`; a cancelled caller leaves only when it is done, so two never overlap."""
        if self._lines is not None and threading.current_thread() is self._thread:
            self._lines.check()
            try:
                return step()
            finally:
                if os.getpid() != self._process:
                    os._exit(0)  # a process that the model forked came back from it: nobody has called that
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="model")
            self._thread.start()
        future: asyncio.Future[T] = self._loop.create_future()
        errand = Errand(step, future)
        self._errands.put(errand)
        try:
            return await future
        except asyncio.CancelledError:
            late: asyncio.Future[T] = self._loop.create_future()
            if errand.wait_on(late):
                await asyncio.wait({late})
                if error := late.exception():
                    log.info("a cancelled call ended with %r", type(error).__name__)
            raise
        finally:
            del future  # what the step raised holds this frame, and would hold itself

    async def in_loop(self, awaitable: Awaitable[T]) -> T:
        if self._lines is not None and threading.current_thread() is self._thread:
            return await self._lines.in_loop(awaitable)
        return await awaitable

    async def serve(self, lines: ThreadLines) -> None:
        """In the loop: has the thread answer their calls, until they are left."""
        self._lines = lines
        try:
            await self(lines.serve)
        finally:
            self._lines = None

    def _work(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand.run()
            try:
                self._loop.call_soon_threadsafe(errand.settle)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del errand

    def stop(self) -> None:
        """The thread ends after the step that it is in."""
        self._errands.put(None)
