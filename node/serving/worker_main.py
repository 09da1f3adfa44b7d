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
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.logs import chosen_level
from modelnet_p2p.node.serving.backends.contract import Backend, Emit, Source, guard, guarded, run_method
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.model_thread import ModelThread
from modelnet_p2p.node.serving.policy.notes import CARRIES, FROM_PEER, Note, NoteKind, Notes
from modelnet_p2p.node.serving.worker_line import House, Line
from modelnet_p2p.node.serving.worker_memory import WorkerMemory
from modelnet_p2p.payload import Value

log = logging.getLogger(__name__)

LOAD = "load"
LEAVE_SECONDS = 1.0  # for the model's `close` and exit handlers, then the process ends all the same
OOM_SCORE = "800"  # of 1000: where memory ends, the model goes before the peer
MAX_HANDLES = 16  # descriptors in one message; the parent sends one at a time
CONTROL_BYTES = 4096  # notes read at a time, which are of 16 bytes


class Control:
    """This end of the control socket: streams and memory arrive, what is freed is told."""

    def __init__(self, sock: socket.socket, on_stream: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_stream = on_stream
        self._notes = Notes(FROM_PEER)
        self._waiting: deque[Note] = deque()  # notes whose turn it is not yet: a descriptor is missing
        self._handles: deque[int] = deque()
        self._unsaid = b""
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._numbers = count(1)
        self.ended = self._loop.create_future()
        self.memory = WorkerMemory(self._wake)
        sock.setblocking(False)
        self._loop.add_reader(sock, self.read)

    def read(self) -> None:
        """Take what the peer has said so far."""
        while not self.ended.done():
            try:
                data, handles, flags, _ = socket.recv_fds(self._sock, CONTROL_BYTES, MAX_HANDLES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, handles, flags = b"", [], 0
            if flags & socket.MSG_CTRUNC:
                log.error("no descriptors left for what the peer hands over: the model holds too many")
                data = b""
            if not data:
                self._loop.remove_reader(self._sock)
                self.ended.set_result(None)
                return
            for handle in handles:
                os.set_inheritable(handle, False)
            self._handles.extend(handles)
            self._waiting.extend(self._notes.receive(data))
            while self._waiting and (self._handles or self._waiting[0].kind not in CARRIES):
                self._on_note(self._waiting.popleft())

    def _on_note(self, note: Note) -> None:
        match note.kind:
            case NoteKind.STREAM:
                self._on_stream(socket.socket(fileno=self._handles.popleft()))
            case NoteKind.MEMORY:
                self.memory.add(note.number, note.size, self._handles.popleft())
            case NoteKind.FORGET:
                self.memory.forget(note.number)
            case NoteKind.GRANT:
                asked = self._asked.pop(note.number, None)
                if asked is not None and not asked.done():
                    asked.set_result(note.size)

    def ask(self) -> tuple[int, asyncio.Future[int]]:
        """A number for a request, and what the peer will grant."""
        number = next(self._numbers) & 0xFFFFFFFF
        granted: asyncio.Future[int] = self._loop.create_future()
        self._asked[number] = granted
        return number, granted

    def tell_spent(self) -> None:
        """Say what memory was freed: now, or as soon as the socket takes it."""
        if notes := self.memory.spent():
            self._unsaid += b"".join(note.pack() for note in notes)
            self._say()

    def _say(self) -> None:
        try:
            sent = self._sock.send(self._unsaid)
        except BlockingIOError:
            sent = 0
        except OSError:  # the peer is gone: `read` will see it, too
            sent = len(self._unsaid)
        self._unsaid = self._unsaid[sent:]
        if self._unsaid:
            self._loop.add_writer(self._sock, self._say)
        else:
            self._loop.remove_writer(self._sock)

    def _wake(self) -> None:
        """From any thread: something was freed."""
        try:
            self._loop.call_soon_threadsafe(self.tell_spent)
        except RuntimeError:
            pass  # the loop is closed: the peer takes everything back when this process has ended


class ModelServer:
    """Answers calls for the one model of this process."""

    def __init__(self) -> None:
        """In the loop that runs it."""
        self._thread = ModelThread()
        self._backend: Backend | None = None
        self._streams = False
        self._lines: set[Line] = set()
        self._handles: set[int] = set()

    async def run(self, sock: socket.socket) -> None:
        """Serve every stream that arrives until the control socket ends."""
        control = Control(sock, self._on_stream)
        self._house = House(self._run, control.memory, control.read, control.tell_spent, control.ask)
        self._handles.add(sock.fileno())
        os.register_at_fork(after_in_child=lambda: close_all(self._handles))
        try:
            await control.ended
            leave_soon()
            lines = tuple(self._lines)
            for line in lines:
                line.leave()
            for line in lines:
                await line.ended()
            if self._backend is not None:
                await guarded(self._backend.close())
        finally:
            leave_soon()  # also when the model interrupted this very loop
            self._thread.stop()

    def _on_stream(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        line = Line(sock, self._house, self._on_end)
        self._lines.add(line)
        self._handles.add(line.handle)

    def _on_end(self, line: Line) -> None:
        self._lines.discard(line)
        self._handles.discard(line.handle)

    async def _run(self, method: str, value: Value, params: Mapping[str, Value], emit: Emit) -> Value:
        if method == LOAD:
            return await self._load(value)
        if self._backend is None:
            raise LocalError(Code.INTERNAL, "a call came before the model was loaded")
        return await run_method(self._backend, self._streams, method, value, params, emit)

    async def _load(self, fields: Value) -> Value:
        source = Source.from_map(fields)
        with guard(Code.MODEL_ERROR, f"the backend of {source.spec[:200]} raised "):
            backend = find_backend(source.spec)(source, self._thread)
            await guarded(backend.load())
            description = backend.describe()
            told = description.to_map()
        self._backend, self._streams = backend, description.streams
        return told


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
