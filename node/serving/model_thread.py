"""The thread of a worker in which a sync model lives, and what is carried there and back.

A pool of one thread would do, but for this: it holds what it was given a moment longer than its caller
waits for it, and a chain of futures holds what a model raised until the next collection of garbage. Either
would be the input of a call, whose memory should be free when the call ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

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

    async def __call__(self, step: Callable[[], T]) -> T:
        """Runs `step`; a cancelled caller leaves only when it is done, so two never overlap."""
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
