"""Clients that hang up while they are being answered: told of at once, with no task and no look for each.

The kernel keeps one list of all connections, which wakes one task when one of them ends, whatever of it lies
unread. Elsewhere than on Linux that task looks at them all now and then.
"""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

LOOK_SECONDS = 0.25  # between two looks, where the kernel does not tell


class HangUps:
    """Made by `open_hangups`."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._known: dict[int, Callable[[], None]] = {}

    def expect(self, handle: int, on_end: Callable[[], None]) -> None:
        """Call `on_end`, which is quick and may be called again, when the far end of that socket is gone."""
        if self._epoll is not None:
            self._epoll.register(handle, select.EPOLLRDHUP | select.EPOLLET)
        self._known[handle] = on_end

    def forget(self, handle: int) -> None:
        """Before the socket is closed; also of one that was never expected."""
        if self._known.pop(handle, None) is not None and self._epoll is not None:
            self._epoll.unregister(handle)

    async def watch(self) -> None:
        while True:
            for handle in await self._ended():
                if (on_end := self._known.get(handle)) is not None:
                    on_end()

    async def _ended(self) -> list[int]:
        if self._epoll is None:
            await trio.sleep(LOOK_SECONDS)
            return [handle for handle in self._known if _is_at_its_end(handle)]
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        return [handle for handle, _ in self._epoll.poll(0)]

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()


def _is_at_its_end(handle: int) -> bool:
    """Also of one that broke; what lies unread hides the end."""
    sock = socket.socket(fileno=handle)
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.detach()


@asynccontextmanager
async def open_hangups() -> AsyncIterator[HangUps]:
    """Watches while the block lasts."""
    hangups = HangUps()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hangups.watch)
            yield hangups
            nursery.cancel_scope.cancel()
    finally:
        hangups.close()
