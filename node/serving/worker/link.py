"""The sockets between a peer and its worker: one for notes and descriptors, one for each call at a time.

They are plain sockets that do not block: a call that can be written at once costs one system call, and
waiting for its answer is the one point where its task sleeps.
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Iterator

import trio

from modelnet_p2p.exchange import Event, Exchange, Role
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.node.serving.policy.notes import FROM_WORKER, Note, Notes
from modelnet_p2p.node.serving.policy.scarcity import no_more
from modelnet_p2p.tree import Buffer

NOTES_BYTES = 4096  # read at a time; a note has 16


def socket_pair(spec: str) -> tuple[socket.socket, socket.socket]:
    """The first one does not block. Raises LocalError (busy) when this machine has no descriptors left."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise no_more(f"cannot connect to a worker of {spec}", error) from error
    ours.setblocking(False)
    return ours, theirs


class Control:
    """The socket that starts streams, hands over memory, and lives as long as the process does."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._notes = Notes(FROM_WORKER)

    async def send(self, note: Note, handle: int | None = None) -> None:
        """Say it, with a copy of the descriptor; raises OSError when nobody listens or none are left."""
        rights = []
        if handle is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [handle]).tobytes())]
        data = note.pack()
        while True:
            try:
                sent = self._sock.sendmsg([data], rights)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock.fileno())
                continue
            if sent != len(data):  # so small a message is taken whole or not at all
                raise ConnectionAbortedError("the control socket took half of a note")
            return

    async def receive(self) -> Iterator[Note] | None:
        """What the worker says, None at its end; raises OSError, and BadNote while it is read."""
        while True:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            try:
                data = self._sock.recv(NOTES_BYTES)
            except BlockingIOError:  # `heard` was here before
                continue
            return self._notes.receive(data) if data else None

    def heard(self) -> Iterator[Note]:
        """What the worker has said already; raises OSError, and BadNote while it is read."""
        try:
            return self._notes.receive(self._sock.recv(NOTES_BYTES))
        except BlockingIOError:
            return iter(())

    def finish(self) -> None:
        """Nothing more will be said: the worker ends. Raises OSError when it has."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._sock.fileno())
        self._sock.close()


class WorkerStream:
    """An `Exchange` with the worker on one socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._exchange = Exchange(Role.CALLER, max_body=MAX_BODY_BYTES)

    async def send(self, event: Event) -> None:
        """Where this raises, the worker has not got all of it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        for buffer in self._exchange.send(event):
            await self._send(buffer)

    async def _send(self, buffer: Buffer) -> None:
        rest = memoryview(buffer)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock.fileno())

    async def receive(self) -> Event | None:
        """The next event; raises RemoteProtocolError, `unreachable` when the worker is gone."""
        while (event := self._exchange.next_event()) is None:
            await trio.lowlevel.wait_readable(self._sock.fileno())
            try:
                count = self._sock.recv_into(self._exchange.get_buffer())
            except BlockingIOError:
                continue
            self._exchange.received(count)
            if count == 0:
                return self._exchange.next_event()
        return event

    async def leave(self) -> None:
        """Cancel the call that is on; returns when the worker has stopped it."""
        scratch = bytearray(1 << 16)
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(self._sock.fileno())
                try:
                    if not self._sock.recv_into(scratch):
                        return
                except BlockingIOError:
                    continue
        except OSError:
            return  # the worker had left already

    def close(self) -> None:
        self._sock.close()
