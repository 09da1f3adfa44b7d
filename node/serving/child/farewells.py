"""What the loop hears while the model's thread is busy: that callers hang up, and that the peer is gone.

(Linux only, as are the lines that this thread drives.)
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
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
    model's thread does meanwhile.

    Who is told of is in no other thread closed before `on_hang_up` has returned: its descriptor might be
    another line's by then.
    """

    def __init__(
        self, control: socket.socket, on_said: Callable[[], None], on_hang_up: Callable[[Line], None]
    ) -> None:
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN | select.EPOLLET)
        self._control = control.fileno()
        self._lines: dict[int, Line] = {}
        self._telling = threading.Lock()  # or changing whom it tells of
        self._on_said = on_said
        self._on_hang_up = on_hang_up
        self.handle = self._epoll.fileno()
        asyncio.get_running_loop().add_reader(self.handle, self._tell)

    def expect(self, line: Line) -> None:
        """In any thread."""
        handle = line.sock.fileno()
        with self._telling:
            self._lines[handle] = line
            self._epoll.register(handle, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def forget(self, line: Line) -> None:
        """In any thread, before the line is closed."""
        handle = line.sock.fileno()
        with self._telling:
            self._epoll.unregister(handle)
            del self._lines[handle]

    def _tell(self) -> None:
        has_said = False
        with self._telling:  # from the look on: what it shows is of these lines
            for handle, _ in self._epoll.poll(0):
                if handle == self._control:
                    has_said = True
                else:
                    self._on_hang_up(self._lines[handle])
        if has_said:
            self._on_said()  # which may open lines
