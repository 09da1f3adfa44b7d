"""This end of the control socket: streams and memory arrive, requests are answered, what is freed is told.

It waits for nothing. Whoever drives the lines reads it and speaks on it, in one thread at a time: first the
loop, then, for a model that blocks, the model's thread. Only during steps that callers share does the loop
read for that thread, hence the lock.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from itertools import count

from modelnet_p2p.node.serving.child.memory import WorkerMemory
from modelnet_p2p.node.serving.policy.notes import CARRIES, FROM_PEER, Note, NoteKind, Notes

log = logging.getLogger(__name__)

MAX_HANDLES = 16  # descriptors in one message; the parent sends one at a time
CONTROL_BYTES = 4096  # notes read at a time, which are of 16 bytes


class Grant:
    """A request for memory, and what came of it."""

    __slots__ = ("number", "on_answer", "region")

    def __init__(self, number: int) -> None:
        self.number = number
        self.region: int | None = None  # None: not answered yet; 0: there is no memory to be had
        self.on_answer: Callable[[], None] = _nothing


def _nothing() -> None:
    pass


class Control:
    """Its driver sets the two callbacks when it takes over, and looks at `ended` and `unsaid`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ended = False  # nothing more will be heard: this process is to end
        self.memory = WorkerMemory(lambda: self.on_freed())
        self.on_stream: Callable[[socket.socket], None]
        self.on_freed: Callable[[], None] = _nothing  # in any thread: something is to be said
        self._notes = Notes(FROM_PEER)
        self._waiting: deque[Note] = deque()  # notes whose turn it is not yet: a descriptor is missing
        self._handles: deque[int] = deque()
        self._unsaid = b""
        self._reading = threading.Lock()
        self._asked: dict[int, Grant] = {}
        self._numbers = count(1)

    def read(self) -> None:
        """Take what the peer has said so far."""
        with self._reading:
            self._read()

    def _read(self) -> None:
        while not self.ended:
            try:
                data, handles, flags, _ = socket.recv_fds(self.sock, CONTROL_BYTES, MAX_HANDLES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, handles, flags = b"", [], 0
            if flags & socket.MSG_CTRUNC:
                log.error("no descriptors left for what the peer hands over: the model holds too many")
                data = b""
            if not data:
                self.ended = True
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
                self.on_stream(socket.socket(fileno=self._handles.popleft()))
            case NoteKind.MEMORY:
                self.memory.add(note.number, note.size, self._handles.popleft())
            case NoteKind.FORGET:
                self.memory.forget(note.number)
            case NoteKind.GRANT:
                if (grant := self._asked.pop(note.number, None)) is not None:
                    grant.region = note.size
                    grant.on_answer()

    def ask(self) -> Grant:
        """What will be answered to a request, which is made on the line of its call."""
        grant = Grant(next(self._numbers) & 0xFFFFFFFF)
        self._asked[grant.number] = grant
        return grant

    def drop(self, grant: Grant) -> None:
        """Nobody waits for it any more."""
        self._asked.pop(grant.number, None)

    def has(self, region: int) -> bool:
        """Whether that memory was handed over: before it was named, though on another socket than that."""
        if not self.memory.knows(region):
            self.read()
        return self.memory.knows(region)

    def say(self) -> None:
        """Say what memory was freed, as much of it as the socket takes now."""
        if notes := self.memory.spent():
            self._unsaid += b"".join(note.pack() for note in notes)
        if not self._unsaid:
            return
        try:
            sent = self.sock.send(self._unsaid)
        except BlockingIOError:
            return
        except OSError:  # the peer is gone: whoever reads will see it, too
            sent = len(self._unsaid)
        self._unsaid = self._unsaid[sent:]

    @property
    def unsaid(self) -> bool:
        """Whether something is left to say as soon as the socket takes it."""
        return bool(self._unsaid)
