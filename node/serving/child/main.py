"""The child side of a worker: one process that holds one model, started as `python -P -m` this.

The parent hands over a control socket and sends streams through it, one file descriptor each. A
stream carries one call after another in the frames of the call protocol; its end during a call is
the cancellation of that call. The control socket's end, also by the parent's death, ends the process.

The loop is asyncio's, for that is what most async model code expects; sync code runs in one thread, which
reads its calls itself. The model prints to stderr: its stdout was tied to that before it started, and no
frame goes that way.
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
from collections.abc import Mapping
from functools import partial

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.logs.level import chosen_level
from modelnet_p2p.node.serving.backends.contract import Backend, Emit, check_options, run_method
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.child import thread_lines
from modelnet_p2p.node.serving.child.batcher import Batcher
from modelnet_p2p.node.serving.child.control import Control
from modelnet_p2p.node.serving.child.farewells import Watch
from modelnet_p2p.node.serving.child.line import House, Line
from modelnet_p2p.node.serving.child.loop_lines import LoopLines
from modelnet_p2p.node.serving.child.model_thread import ModelThread
from modelnet_p2p.node.serving.child.thread_batcher import ThreadBatcher
from modelnet_p2p.node.serving.child.thread_lines import ThreadLines
from modelnet_p2p.node.serving.guarding import guard, guarded
from modelnet_p2p.node.serving.remembering import stamps_of
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value

log = logging.getLogger(__name__)

LOAD = "load"
STAMPS = "stamps"  # beside the description, in the answer to it
LEAVE_SECONDS = 1.0  # for the model's `close` and exit handlers, then the process ends all the same
OOM_SCORE = "800"  # of 1000: where memory ends, the model goes before the peer


class ModelServer:
    """Answers calls for the one model of this process."""

    def __init__(self) -> None:
        """In the loop that runs it."""
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._thread = ModelThread()
        self._backend: Backend | None = None
        self._streams = False
        self._batcher: Batcher | ThreadBatcher | None = None  # of a model whose calls share steps
        self._in_thread: ThreadLines | None = None  # once a model that blocks is loaded
        self._serving: asyncio.Task[None] | None = None

    async def run(self, sock: socket.socket) -> None:
        """Serve every stream that arrives until the control socket ends."""
        self._house = House(self._run, Control(sock))
        self._in_loop = LoopLines(self._house, self._end)
        os.register_at_fork(after_in_child=lambda: close_all(self._house.handles))
        try:
            await self._ended
            leave_soon()
            await self._in_loop.leave()
            if self._in_thread is not None and self._serving is not None:
                self._in_thread.leave()
                await self._serving
            if self._backend is not None:
                await guarded(self._backend.close())
        finally:
            leave_soon()  # also when the model interrupted this very loop
            if self._in_thread is not None:
                self._in_thread.leave()
            self._thread.stop()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def _run(
        self, method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str
    ) -> Value:
        if method == LOAD:
            return await self._load(value)
        if self._backend is None:
            raise LocalError(Code.INTERNAL, "a call came before the model was loaded")
        if self._batcher is None:
            return await run_method(self._backend, self._streams, method, value, params, emit)
        output = await self._batcher.invoke(value, params, caller)
        if method == "invoke":
            return output
        await emit(output)
        return None

    async def _load(self, fields: Value) -> Value:
        source = Source.from_map(fields)
        with guard(Code.MODEL_ERROR, f"the backend of {source.spec[:200]} raised "):
            kind = find_backend(source.spec)
            check_options(kind, source)
            backend = kind(source, self._thread)
            await guarded(backend.load())
            description = backend.describe()
            stamps = stamps_of(source, description.files)
            rows = None if stamps is None else [[each.path, each.size, each.mtime_ns] for each in stamps]
            told = description.to_map() | {STAMPS: rows}
            blocks = backend.blocks
        self._backend, self._streams = backend, description.streams
        shares = description.batches > 1 and not description.streams
        if blocks and thread_lines.POSSIBLE:
            in_thread = ThreadBatcher(backend, description.batches) if shares else None
            self._batcher = in_thread
            self._in_loop.rest(partial(self._to_thread, in_thread))
        elif shares:
            self._batcher = Batcher(backend, description.batches)
        return told

    def _to_thread(self, batcher: ThreadBatcher | None, lines: list[Line]) -> None:
        """The model's thread takes over. This loop is told of the end all the same: a step may take long."""
        self._in_thread = ThreadLines(self._house, lines, batcher)
        watch = Watch(self._house.control.sock, self._end)
        self._house.handles.add(watch.handle)
        self._serving = self._loop.create_task(self._thread.serve(self._in_thread))
        self._serving.add_done_callback(lambda _: self._end())


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


async def serve(control: socket.socket) -> None:
    server = asyncio.current_task()
    assert server is not None
    # the loop's own handler wakes it; asyncio.run's would not be seen before the loop does something else
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, server.cancel)
    await ModelServer().run(control)


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
        asyncio.run(serve(control))
    finally:
        control.detach()  # it ends with the process, after the exit handlers: its end is our death


if __name__ == "__main__":
    main()
