"""Lines driven by the model's thread itself: one call after the other, and no wake-up on its way.

For models that block. Waking a thread that sleeps takes as long as all else in a small call, so the thread in
which the model runs reads its calls from their sockets and writes the answers. The loop, in the main thread,
only watches for the end, and runs what such a model gives to be awaited. (Linux only: elsewhere the loop
drives every line, and the steps of the model are carried to its thread.)

A call is the same coroutine as in the loop. What it awaits blocks here, so it never is suspended; only those
of a model that takes batches are, while they wait for a step.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

from modelnet_p2p.node.serving.child.control import Grant
from modelnet_p2p.node.serving.child.farewells import Farewells
from modelnet_p2p.node.serving.child.line import BROKEN, House, Line, Work
from modelnet_p2p.node.serving.child.thread_batcher import Pending, ThreadBatcher
from modelnet_p2p.node.serving.guarding import guarded

log = logging.getLogger(__name__)

T = TypeVar("T")

_NOT_SO = "a backend that `blocks` awaits only `offload` and its `in_loop`"
POSSIBLE = hasattr(select, "epoll") and hasattr(os, "eventfd")


class ThreadLines:
    """All lines of a worker, and its control socket, from now on. One thread calls `serve`."""

    def __init__(self, house: House, lines: Sequence[Line], batcher: ThreadBatcher | None = None) -> None:
        """In the loop, before that thread comes to it; `batcher` of a model whose calls share steps."""
        self._house = house
        self._batcher = batcher
        self._farewells: Farewells | None = None
        self._stepping = False  # callers may share the step that is on: the loop listens meanwhile
        self._control = house.control
        self._loop = asyncio.get_running_loop()
        self._lines: set[Line] = set()
        self._current: Line | None = None
        self._leaving = False
        self._is_full = False  # the control socket: to be written to when there is room
        self._thread = 0  # the identity of the one that serves
        # never closed: what is freed at the very end still writes to it, in whichever thread that is
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ, self._silence)
        self._selector.register(self._control.sock, selectors.EVENT_READ, self._on_control)
        if batcher is not None:
            self._farewells = Farewells(self._control.sock, self._on_said, self._on_hang_up)
            house.handles.add(self._farewells.handle)
        for line in lines:
            self._adopt(line)
        self._control.on_stream = lambda sock: self._adopt(house.open(sock, self))
        self._control.on_freed = self._on_freed

    def _on_freed(self) -> None:
        """In any thread. What this one lets go of during a call is told at its end."""
        if self._current is None or threading.get_ident() != self._thread:
            self.ring()

    def ring(self) -> None:
        """In any thread: this one is to look up from where it sleeps."""
        os.eventfd_write(self._bell, 1)

    def _silence(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:  # a wait inside of a call has heard it
            pass

    def leave(self) -> None:
        """In the loop: the call that is on is cancelled, and `serve` returns when it has stopped."""
        self._leaving = True
        self.ring()

    # --- the model's thread ---

    def serve(self) -> None:
        """Answers calls until `leave`, or the control socket's end.

        Raises what is not a mistake of the model but asks for the end of its process, KeyboardInterrupt
        above all.
        """
        self._thread = threading.get_ident()
        try:
            while not (self._leaving or self._control.ended):
                self._say_rest()
                for key, _ in self._selector.select(self._step()):
                    key.data()
        finally:
            for pending in self._batcher.drop_all() if self._batcher is not None else ():
                pending.work.close()
            self._selector.close()
            for line in tuple(self._lines):
                self._close(line)

    def _say_rest(self) -> None:
        """What was freed since the last call's end, and what the socket did not take before."""
        self._control.say()
        if self._control.unsaid != self._is_full:
            self._is_full = self._control.unsaid
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            events = both if self._is_full else selectors.EVENT_READ
            self._selector.modify(self._control.sock, events, self._on_control)

    def _on_control(self) -> None:
        self._control.read()

    def _adopt(self, line: Line) -> None:
        line.waits = self
        self._lines.add(line)
        if self._farewells is not None:
            self._farewells.expect(line)
        self._selector.register(line.sock, selectors.EVENT_READ, partial(self._on_readable, line))

    def _close(self, line: Line) -> None:
        self._lines.discard(line)
        if self._farewells is not None:
            self._farewells.forget(line)
        self._house.close(line)

    def _on_readable(self, line: Line) -> None:
        work = None
        with self._handling(line):
            work = line.take()
        if work is not None:
            self._go_on(line, work)

    def _go_on(self, line: Line, work: Work, error: BaseException | None = None) -> None:
        """Run a call until its end, or until it waits for a step."""
        with self._handling(line, level=logging.ERROR):
            pending = _drive(work, error)
            if pending is not None:
                pending.line, pending.work = line, work

    @contextmanager
    def _handling(self, line: Line, level: int = logging.DEBUG) -> Iterator[None]:
        """This line's turn; it is closed where that fails. `level`: of what is no fault of its socket's."""
        self._current = line
        try:
            yield
            return
        except BROKEN as error:
            log.log(logging.DEBUG if isinstance(error, OSError) else level, "a stream ended: %r", error)
        except asyncio.CancelledError:
            log.debug("a call was cancelled")
        finally:
            self._current = None
        self._selector.unregister(line.sock)
        self._close(line)

    # --- steps that calls share ---

    def _step(self) -> float | None:
        """Make the step that is due, if one is; returns for how long nothing else has to be done."""
        if self._batcher is None:
            return None
        step = self._batcher.take(time.monotonic())
        if not isinstance(step, list):
            return None if step is None else max(0.0, step - time.monotonic())
        cancelled: asyncio.CancelledError | None = None
        self._stepping = True
        self._control.read()  # from now on the loop does
        if len(step) == 1:  # it may be cancelled between two of the model's steps
            self._current = step[0].line
        try:
            _drive(self._batcher.answer(step))
        except asyncio.CancelledError as error:  # by its caller, who has left, or by the model itself
            cancelled = error
        finally:
            self._current, self._stepping = None, False
            self._batcher.ended(time.monotonic())
        for pending in step:
            gone = None
            if not pending.settled:
                gone = cancelled or asyncio.CancelledError()
                pending.line.left = pending.line.left or cancelled is None
            self._go_on(pending.line, pending.work, gone)
        return 0.0  # who came meanwhile is looked at before the next one

    def _on_said(self) -> None:
        """In the loop: lines may be opened during a step, and their callers hang up before it ends."""
        if self._stepping:
            self._control.read()
            self.ring()

    def _on_hang_up(self, line: Line) -> None:
        """In the loop. Who leaves a call that waits, or shares its step, need not wait for others: that the
        line is shut tells the peer so. This thread closes it when it comes to it."""
        if line is not self._current:
            try:
                line.sock.shutdown(socket.SHUT_WR)
            except OSError:  # it is closed already
                pass

    def check(self) -> None:
        """Before each step of the model: raises CancelledError, once, when its caller has left."""
        line = self._current
        if line is not None and not line.left and (self._leaving or line.is_gone()):
            line.left = True
            raise asyncio.CancelledError

    # --- waits ---

    async def pause(self) -> None:
        pass  # nobody else comes to a turn here

    async def writable(self, line: Line) -> None:
        self._wait(line, select.POLLOUT)

    async def answered(self, line: Line, grant: Grant) -> None:
        while grant.region is None:
            self._wait(line, 0, self._control.sock)
            self._control.read()
            if self._control.ended and grant.region is None:
                raise ConnectionAbortedError("the peer is gone")

    def say(self) -> None:
        self._control.say()  # what it does not take is said when this call has ended

    def _wait(self, line: Line | None, events: int, other: socket.socket | None = None) -> None:
        """Until `events` of the line, its caller's end, the other socket or the bell; raises as `check`."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if other is not None:
            poll.register(other, select.POLLIN)
        if line is not None and not line.left:
            poll.register(line.sock, events | select.POLLIN)
        elif line is not None and events:  # that it was left is known, and would be told again and again
            poll.register(line.sock, events)
        poll.poll()
        self._silence()
        self.check()

    async def in_loop(self, awaitable: Awaitable[T]) -> T:
        """What the model gave to be awaited is awaited in the loop, and here waited for."""
        late = Late(awaitable, self.ring)
        self._loop.call_soon_threadsafe(late.start)
        while not late.ended:
            try:
                self._wait(self._current, 0)
            except asyncio.CancelledError:
                self._loop.call_soon_threadsafe(late.cancel)
        return late.take()


class Late(Generic[T]):
    """Something awaited in the loop for a thread that waits for it."""

    def __init__(self, awaitable: Awaitable[T], ring: Callable[[], None]) -> None:
        self._awaitable = awaitable
        self._task: asyncio.Task[T] | None = None
        self._ring = ring
        self.ended = False

    def start(self) -> None:
        """In the loop."""
        self._task = asyncio.get_running_loop().create_task(_awaited(self._awaitable))
        self._task.add_done_callback(self._on_done)

    def cancel(self) -> None:
        """In the loop."""
        if self._task is not None:
            self._task.cancel()

    def _on_done(self, task: asyncio.Task[T]) -> None:
        self.ended = True
        self._ring()

    def take(self) -> T:
        """In the thread, when it has ended: what it gave, or raises what it raised."""
        task, self._task = self._task, None
        assert task is not None
        try:
            return task.result()
        finally:
            del task  # what it raised holds this frame, and would hold itself


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await guarded(awaitable)


def _drive(work: Coroutine[object, None, None], error: BaseException | None = None) -> Pending | None:
    """Run it in this thread and at once, to its end or until it waits for a step."""
    try:
        waits_for = work.send(None) if error is None else work.throw(error)
        while not isinstance(waits_for, Pending):  # and it is told so until it ends
            waits_for = work.throw(RuntimeError(_NOT_SO))
        return waits_for
    except StopIteration:
        return None
