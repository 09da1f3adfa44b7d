"""A peer in a thread of its own, and the way into it: what both faces of `Swarm` stand on.

The thread runs trio and serves callers of any kind: other threads, which block, and other event loops,
which await by way of anyio's portal. A call is one hop there and one back. When its caller gives up
(Ctrl-C, a cancelled task) the call ends as a cancelled call of the peer does: on the far side too, at once.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import outcome
import trio
from anyio.from_thread import BlockingPortal

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.payload import Value

T = TypeVar("T")
Opening = Callable[[], AbstractAsyncContextManager[Peer]]


class Job(Generic[T]):
    """A call in the peer's thread, for whom it is done in another one."""

    def __init__(self, thread: PeerThread, function: Callable[[], Awaitable[T]]) -> None:
        self._thread = thread
        self._function = function
        self._scope = trio.CancelScope()
        self._answer: Future[outcome.Outcome[T]] = Future()
        self._over = trio.Event()

    async def run(self) -> None:
        self._answer.set_result(await outcome.acapture(self._thread.within, self._scope, self._function))
        self._over.set()

    def refuse(self, error: LocalError) -> None:
        self._answer.set_result(outcome.Error(error))
        self._over.set()

    def result(self) -> T:
        """Block until it is there; what ends the waiting, a Ctrl-C above all, cancels the call."""
        try:
            answer = self._answer.result()
        except BaseException:
            self.cancel()
            raise
        return answer.unwrap()

    async def wait(self) -> T:
        """In the peer's thread, for a caller in an event loop."""
        await self._over.wait()
        return self.result()

    def cancel(self) -> None:
        """From any thread; harmless when the call has ended."""
        self._thread.soon(self._scope.cancel)


class PeerThread:
    """Runs a peer until `close`. All methods may be called from several threads at once."""

    def __init__(self, opening: Opening) -> None:
        """Returns when the peer is open; raises what opening it raises."""
        self._opening = opening
        self._pid = os.getpid()
        self._begun: Future[trio.lowlevel.TrioToken] = Future()
        self._ready: Future[None] = Future()
        self._ended: Future[outcome.Outcome[None]] = Future()
        self._over = False  # set in the peer's thread, before anything of the peer is taken down
        self._closing = threading.Lock()
        self._told = False  # the first to close has heard how it ended
        self._stop = trio.Event()
        self._life = trio.CancelScope()
        self._scopes: set[trio.CancelScope] = set()  # one for each caller that waits
        # a daemon: Python waits for the others before `atexit`, where a forgotten peer is closed
        self._thread = threading.Thread(target=self._run, name="modelnet-swarm", daemon=True)
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:  # a Ctrl-C while it opens: leave nothing behind
            self._begun.add_done_callback(lambda token: token.result().run_sync_soon(self._life.cancel))
            self._ended.result()
            raise
        if self._ended.done():
            self._ended.result().unwrap()
        self._token = self._begun.result()
        atexit.register(self.close)

    def _run(self) -> None:
        ended = outcome.capture(trio.run, self._live)
        self._over = True
        self._ended.set_result(ended)
        if not self._ready.done():
            self._ready.set_result(None)

    async def _live(self) -> None:
        """The peer's life, with its calls around it: they have ended when the thread does."""
        self._begun.set_result(trio.lowlevel.current_trio_token())
        with single_error(), self._life:
            async with (
                BlockingPortal() as self._portal,
                trio.open_nursery() as self._nursery,
                self._opening() as self.peer,
            ):
                try:
                    self._ready.set_result(None)
                    await self._stop.wait()
                finally:  # also when the peer came down by itself
                    self._over = True
                    for scope in self._scopes:
                        scope.cancel()

    async def within(self, scope: trio.CancelScope, function: Callable[[], Awaitable[T]]) -> T:
        """In the peer's thread: await `function`, no longer than the peer lives."""
        if self._over:
            raise closed()
        with scope:
            self._scopes.add(scope)
            try:
                return await function()
            finally:
                self._scopes.discard(scope)
        raise closed()  # or the caller has gone, and does not read this

    @property
    def over(self) -> bool:
        return self._over

    def check(self) -> None:
        """Raises LocalError where the peer is closed, another process's, or cannot be waited for."""
        if self._pid != os.getpid():
            raise LocalError(
                Code.NOT_RUNNING,
                "this swarm was opened by another process, and did not come along when that was forked",
                hint="open one in this process: Swarm.open()",
            )
        if threading.get_ident() == self._thread.ident:
            raise LocalError(
                Code.BAD_INPUT,
                "a callback in the peer's own thread cannot wait for that thread",
                hint="call the swarm when the callback has returned",
            )
        if self._over:
            raise closed()

    # --- callers that block ---

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """What `function`, awaited in the peer's thread, gives or raises."""
        return self.begin(function).result()

    def begin(self, function: Callable[[], Awaitable[T]]) -> Job[T]:
        """Start it, and do not wait."""
        self.check()
        job = Job(self, function)
        try:
            self._token.run_sync_soon(self._start, job)
        except trio.RunFinishedError:
            raise closed() from None
        return job

    def _start(self, job: Job[T]) -> None:
        if self._over:
            job.refuse(closed())
        else:
            self._nursery.start_soon(job.run)

    def soon(self, function: Callable[[], object]) -> None:
        """Run something short in the peer's thread, called from anywhere; nothing where that is gone."""
        if self._pid == os.getpid():
            try:
                self._token.run_sync_soon(function)
            except trio.RunFinishedError:
                pass  # and whatever it was about

    # --- callers in an event loop ---

    async def run_async(self, function: Callable[[], Awaitable[T]]) -> T:
        """Like `run`, awaited in any event loop that anyio knows; cancelling this cancels the call."""
        self.check()
        try:
            return await self._portal.call_async(self.within, trio.CancelScope(), function)
        except RuntimeError as error:  # the portal's own, for one that has stopped
            if self._ended.done():
                raise closed() from error
            raise

    # --- the end ---

    def stop_soon(self) -> None:
        """Begin to close, and do not wait: a garbage collector may do this."""
        self.soon(self._stop.set)

    def close(self) -> None:
        """Close the peer and end its thread; harmless a second time. Raises what brought the peer down."""
        if self._pid != os.getpid():
            return  # the thread stayed with the process that was forked
        self.stop_soon()
        if threading.get_ident() == self._thread.ident:
            return  # it cannot wait for its own end
        ended = self._ended.result()
        self._thread.join()
        atexit.unregister(self.close)
        with self._closing:
            told, self._told = self._told, True
        if not told:
            ended.unwrap()


class Telling(Generic[T]):
    """A call whose items go to a callback of the caller's, in the caller's own thread or loop."""

    def __init__(self, start: Callable[[Callable[[Value], Awaitable[None]]], Awaitable[T]]) -> None:
        # no buffer: the model goes no faster than the callback
        self._send, self._receive = trio.open_memory_channel[Value](0)
        self._start = start

    async def run(self) -> T:
        """The call; its end is the end of the items."""
        with self._send:
            return await self._start(self._send.send)

    async def next(self) -> tuple[Value] | None:
        """The next item, None after the last."""
        try:
            return (await self._receive.receive(),)
        except trio.EndOfChannel:
            return None


def closed() -> LocalError:
    return LocalError(
        Code.NOT_RUNNING, "this swarm is closed", hint="open another one: `with Swarm.open() as swarm:`"
    )
