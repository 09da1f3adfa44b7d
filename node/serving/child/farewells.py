"""What the loop hears while the model's thread is busy: that callers hang up, and that the peer is gone.

(Linux only, as are the lines that this thread drives.)
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable

from modelnet_p2p.node.serving.child.line import Line


class Watch:
    """Tells the loop of the control socket's end, whatever lies unread in that and whoever reads it."""

    def __init__(self, sock: socket.socket, on_end: Callable[[], None]) -> None:
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLRDHUP)
        self.handle = self._epoll.fileno()
        asyncio.get_running_loop().add_reader(self.handle, self._tell, on_end)

    def _tell(self, on_end: Callable[[], None]) -> None:
        asyncio.get_running_loop().remove_reader(self.handle)
        on_end()


class Farewells:
    """Tells the loop of callers who hang up, once each, and that the peer has said something, whatever the
    model's thread does meanwhile."""

    def __init__(
        self, control: socket.socket, on_said: Callable[[], None], on_hang_up: Callable[[Line], None]
    ) -> None:
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN | select.EPOLLET)
        self._control = control.fileno()
        self._lines: dict[int, Line] = {}
        self._on_said = on_said
        self._on_hang_up = on_hang_up
        self.handle = self._epoll.fileno()
        asyncio.get_running_loop().add_reader(self.handle, self._tell)

    def expect(self, line: Line) -> None:
        """In any thread."""
        handle = line.sock.fileno()
        self._lines[handle] = line
        self._epoll.register(handle, select.EPOLLRDHUP | select.EPOLLET)

    def forget(self, line: Line) -> None:
        """In any thread, before the line is closed."""
        handle = line.sock.fileno()
        self._epoll.unregister(handle)
        del self._lines[handle]

    def _tell(self) -> None:
        for handle, _ in self._epoll.poll(0):
            if handle == self._control:
                self._on_said()
            elif (line := self._lines.get(handle)) is not None:
                self._on_hang_up(line)
