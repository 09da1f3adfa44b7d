"""Lines driven by the event loop: each call is a task, and several may be on at once.

For models that await, and for every model until it is loaded. The loop tells of bytes by a callback that
stays registered, so that a call costs one task and no more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from modelnet_p2p.node.serving.child.control import Grant
from modelnet_p2p.node.serving.child.line import BROKEN, House, Line

log = logging.getLogger(__name__)


class LoopLines:
    """All lines of a worker, and its control socket, from now on and until `rest`."""

    def __init__(self, house: House, on_end: Callable[[], None]) -> None:
        """In the loop; `on_end` is called when the control socket has ended."""
        self._loop = asyncio.get_running_loop()
        self._house = house
        self._control = house.control
        self._on_end = on_end
        self._on_rest: Callable[[list[Line]], None] | None = None
        self._works: dict[Line, asyncio.Task[None] | None] = {}
        self._control.on_stream = self._open
        self._control.on_freed = self._on_freed
        self._loop.add_reader(self._control.sock, self._on_control)

    def _on_control(self) -> None:
        self._control.read()
        if self._control.ended:
            self._loop.remove_reader(self._control.sock)
            self._on_end()

    def _open(self, sock: socket.socket) -> None:
        line = self._house.open(sock, self)
        self._works[line] = None
        self._loop.add_reader(sock, self._on_readable, line)

    def _on_freed(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self.say)
        except RuntimeError:
            pass  # the loop is closed: the peer takes everything back when this process has ended

    def _on_readable(self, line: Line) -> None:
        try:
            work = line.take()
        except BROKEN as error:
            log.debug("a stream ended: %s", error)
            self._leave(line)
            return
        if work is not None:
            task = self._works[line] = self._loop.create_task(work)
            task.add_done_callback(lambda task: self._on_done(line, task))

    def _on_done(self, line: Line, task: asyncio.Task[None]) -> None:
        if self._works[line] is task:  # its caller may have sent the next call already
            self._works[line] = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
            log.log(level, "a stream ended: %r", error)
        if line.left and self._works[line] is None:
            self._close(line)
        elif error is not None:
            self._leave(line)
        self._rest_now()

    def _leave(self, line: Line) -> None:
        """Nobody listens any more: cancel the call, close the stream when it has stopped."""
        if not line.left:
            line.left = True
            self._loop.remove_reader(line.sock)
            if (task := self._works[line]) is None:
                self._close(line)
            else:
                task.cancel()

    def _close(self, line: Line) -> None:
        del self._works[line]
        self._house.close(line)

    async def leave(self) -> None:
        """Cancels every call; returns when all have stopped."""
        tasks = {task for task in self._works.values() if task is not None}
        for line in tuple(self._works):
            self._leave(line)
        if tasks:
            await asyncio.wait(tasks)

    # --- giving the lines away ---

    def rest(self, on_rest: Callable[[list[Line]], None]) -> None:
        """Nothing is read any more; the lines are given away as soon as no call is on."""
        self._on_rest = on_rest
        self._loop.remove_reader(self._control.sock)
        for line in self._works:
            self._loop.remove_reader(line.sock)

    def _rest_now(self) -> None:
        if self._on_rest is not None and not any(self._works.values()):
            self._loop.remove_writer(self._control.sock)
            lines, self._works = list(self._works), {}
            on_rest, self._on_rest = self._on_rest, None
            on_rest(lines)

    # --- waits ---

    async def pause(self) -> None:
        await asyncio.sleep(0)

    async def writable(self, line: Line) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(line.sock, _set, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(line.sock)

    async def answered(self, line: Line, grant: Grant) -> None:
        ready = self._loop.create_future()
        grant.on_answer = lambda: _set(ready)
        if grant.region is None:
            await ready

    def say(self) -> None:
        if self._control.on_freed != self._on_freed:  # freed before the lines were given away
            self._control.on_freed()
            return
        before = self._control.unsaid
        self._control.say()
        if self._control.unsaid:
            self._loop.add_writer(self._control.sock, self.say)
        elif before:
            self._loop.remove_writer(self._control.sock)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
