"""The child side of a worker: one process that holds one model, started as `python -P -m` this.

The parent hands over a control socket and sends streams through it, one file descriptor each. A
stream carries one call after another in the frames of the call protocol; its end during a call is
the cancellation of that call. The control socket's end, also by the parent's death, ends the process.

The loop is asyncio's, for that is what most async model code expects; sync code runs in one thread.
The model prints to stderr: its stdout was tied to that before it started, and no frame goes that way.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.exchange import (
    Call,
    Event,
    Exchange,
    Fault,
    Item,
    LocalProtocolError,
    RemoteProtocolError,
    Result,
    Role,
)
from modelnet_p2p.node.logs import chosen_level
from modelnet_p2p.node.serving.backends.contract import (
    MAX_BODY_BYTES,
    Backend,
    Source,
    guard,
    guarded,
    run_method,
)
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.payload import Value

log = logging.getLogger(__name__)

LOAD = "load"
LEAVE_SECONDS = 1.0  # for the model's `close` and exit handlers, then the process ends all the same
OOM_SCORE = "800"  # of 1000: where memory ends, the model goes before the peer
MAX_STREAMS = 16  # descriptors in one message; the parent sends one at a time

T = TypeVar("T")


class ModelThread:
    """The one thread in which a sync model lives: it may keep what is bound to its thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "model")

    async def __call__(self, step: Callable[[], T]) -> T:
        """Runs `step`; a cancelled caller leaves only when it is done, so two never overlap."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, step)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            if not future.cancelled() and (error := future.exception()):
                log.info("a cancelled call ended with %r", type(error).__name__)
            raise


class Pipe:
    """An `Exchange` on a socket of this process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._exchange = Exchange(Role.ANSWERER, max_body=MAX_BODY_BYTES)
        self._hearing: asyncio.Task[Event | None] | None = None

    def hearing(self) -> asyncio.Task[Event | None]:
        """The task that waits for the next event; the same one until `receive` took its event."""
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._receive())
        return self._hearing

    async def receive(self) -> Event | None:
        """The next event, None at the end; raises RemoteProtocolError, OSError."""
        event = await self.hearing()
        self._hearing = None
        return event

    async def _receive(self) -> Event | None:
        loop = asyncio.get_running_loop()
        while (event := self._exchange.next_event()) is None:
            count = await loop.sock_recv_into(self._sock, self._exchange.get_buffer())
            self._exchange.received(count)
            if count == 0:
                return self._exchange.next_event()
        return event

    async def send(self, event: Event) -> None:
        """Raises LocalProtocolError for a value that cannot be sent, OSError when nobody listens."""
        loop = asyncio.get_running_loop()
        for buffer in self._exchange.send(event):
            await loop.sock_sendall(self._sock, buffer)


class ModelServer:
    """Answers calls for the one model of this process."""

    def __init__(self) -> None:
        self._thread = ModelThread()
        self._backend: Backend | None = None
        self._streams = False
        self._serving: set[asyncio.Task[None]] = set()

    async def run(self, control: socket.socket) -> None:
        """Serve every stream that arrives until the control socket ends."""
        try:
            async for sock in incoming(control):
                task = asyncio.create_task(self._serve(sock))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
        finally:
            leave_soon()  # also when the model interrupted this very loop
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
        if self._backend is not None:
            await guarded(self._backend.close())

    async def _serve(self, sock: socket.socket) -> None:
        pipe = Pipe(sock)
        with sock:
            try:
                while isinstance(call := await pipe.receive(), Call):
                    await self._answer(pipe, call)
            except (RemoteProtocolError, OSError) as error:
                log.debug("a stream ended: %s", error)

    async def _answer(self, pipe: Pipe, call: Call) -> None:
        """Run one call; the caller's leaving cancels it, and then raises what `Pipe.receive` raises."""
        work = asyncio.create_task(self._run(pipe, call))
        try:
            await asyncio.wait({work, pipe.hearing()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if work.cancelled() and not pipe.hearing().done():
            await pipe.send(Fault(Code.MODEL_ERROR, "the model raised CancelledError"))
        elif not work.cancelled():
            work.result()

    async def _run(self, pipe: Pipe, call: Call) -> None:
        async def emit(value: Value) -> None:
            await send_value(pipe, Item(value))

        try:
            if call.method == LOAD:
                value = await self._load(call.value)
            elif self._backend is None:
                raise LocalError(Code.INTERNAL, "a call came before the model was loaded")
            else:
                value = await run_method(
                    self._backend, self._streams, call.method, call.value, call.params, emit
                )
            await send_value(pipe, Result(value))
        except ModelnetError as error:
            await pipe.send(Fault.of(error))

    async def _load(self, fields: Value) -> Value:
        source = Source.from_map(fields)
        with guard(Code.MODEL_ERROR, f"the backend of {source.spec[:200]} raised "):
            backend = find_backend(source.spec)(source, self._thread)
            await guarded(backend.load())
            description = backend.describe()
            told = description.to_map()
        self._backend, self._streams = backend, description.streams
        return told


async def send_value(pipe: Pipe, event: Item | Result) -> None:
    """Send what the model gave; what cannot be sent is the model's fault, not its caller's."""
    try:
        await pipe.send(event)
    except LocalProtocolError as error:
        code = Code.TOO_LARGE if error.code is Code.TOO_LARGE else Code.MODEL_ERROR
        message = f"the model's answer cannot be sent: {error.message}"
        raise LocalError(code, message, hint=error.hint, retryable=False) from error


async def incoming(control: socket.socket) -> AsyncIterator[socket.socket]:
    """The streams that the parent sends, until the control socket ends."""
    control.setblocking(False)
    readable = asyncio.Event()
    asyncio.get_running_loop().add_reader(control, readable.set)
    ours = {control.fileno()}
    os.register_at_fork(after_in_child=lambda: close_all(ours))
    while True:
        await readable.wait()
        readable.clear()
        try:
            data, handles, _, _ = socket.recv_fds(control, MAX_STREAMS, MAX_STREAMS)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return
        if not data:
            return
        for handle in handles:
            os.set_inheritable(handle, False)
            ours.add(handle)
            sock = socket.socket(fileno=handle)
            sock.setblocking(False)
            yield sock


def close_all(handles: set[int]) -> None:
    """In a process that the model forked: it must not hold our sockets open when we are gone."""
    for handle in handles:
        try:
            os.close(handle)
        except OSError:  # closed before the fork
            pass


def leave_soon() -> None:
    """From now on the process ends within LEAVE_SECONDS, whatever the model's threads do."""
    timer = threading.Timer(LEAVE_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


def end_children() -> None:
    """Processes that the model started and left behind end with it."""
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)


def first_to_die() -> None:
    """Tell the kernel whom to end when memory runs out (Linux; elsewhere there is no such file)."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(OOM_SCORE)
    except OSError:
        log.debug("the out-of-memory score could not be set")


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=chosen_level(), format="%(levelname)s worker: %(message)s")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr] # both are TextIOWrapper at start
    atexit.register(end_children)
    first_to_die()
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    sys.argv = sys.argv[:1]
    sys.path.insert(0, os.getcwd())
    try:
        asyncio.run(ModelServer().run(control))
    finally:
        control.detach()  # it ends with the process, after the exit handlers: its end is our death


if __name__ == "__main__":
    main()
