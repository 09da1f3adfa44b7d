"""The call to a running peer that `client` makes, for programs that await; a cancellation ends it there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.exchange import Exchange, RemoteProtocolError, Role
from modelnet_p2p.node.control import wire
from modelnet_p2p.node.control.client import not_running
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import find_control
from modelnet_p2p.payload import Value
from modelnet_p2p.tree import Buffer

if TYPE_CHECKING:
    from modelnet_p2p.node.control.table import Emit, Request


@asynccontextmanager
async def open_control(home: Home) -> AsyncIterator[Conversation]:
    """A connection to the peer on `home`, for one call; LocalError: not-running, or bad-state."""
    path = find_control(home)
    connection = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with connection:
        try:
            with trio.fail_after(wire.SILENCE_SECONDS):
                await connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise not_running(home) from error
        except trio.TooSlowError:
            raise _silent(path) from None
        except OSError as error:
            raise LocalError(
                Code.BAD_STATE, f"cannot reach the control socket {path}: {reason(error)}"
            ) from error
        yield Conversation(connection, path)


class Conversation:
    """One call; closing the connection, also by a cancellation, ends it over there."""

    def __init__(self, connection: trio.socket.SocketType, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._exchange = Exchange(Role.CALLER, max_body=wire.MAX_BODY_BYTES)

    async def call(self, method: str, request: Request, emit: Emit) -> Value:
        """Make it; items and notices go to `emit`, which may be slow: the peer then waits.

        Raises what the peer raised; LocalError: deadline if it shows no sign of life, not-running if it goes.
        """
        call = wire.to_call(method, request.params, request.value, request.network)
        buffers = self._exchange.send(call)
        await self._told(lambda: self._send(buffers))
        while True:
            kind, value = wire.heard(await self._told(self._next))
            if kind == wire.RESULT:
                return value
            if kind != wire.BEAT:
                await emit(kind, value)

    async def _told(self, step: Callable[[], Awaitable[object]]) -> object:
        """One step with the socket; what that raises, in words."""
        try:
            return await step()
        except trio.TooSlowError:
            raise _silent(self._path) from None
        except (OSError, RemoteProtocolError) as error:
            words = reason(error) if isinstance(error, OSError) else error.message
            raise LocalError(
                Code.NOT_RUNNING, f"the running peer went away: {words}", hint="modelnet-peer join"
            ) from error

    async def _send(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            rest = memoryview(buffer).cast("B")
            while rest:
                with trio.fail_after(wire.SILENCE_SECONDS):
                    rest = rest[await self._connection.send(rest) :]

    async def _next(self) -> object:
        while (event := self._exchange.next_event()) is None:
            with trio.fail_after(wire.SILENCE_SECONDS):
                count = await self._connection.recv_into(self._exchange.get_buffer())
            self._exchange.received(count)
        return event


def _silent(path: Path) -> LocalError:
    return LocalError(
        Code.DEADLINE,
        f"the peer behind {path} has said nothing for {wire.SILENCE_SECONDS:g} s",
        hint="it may be stopped: see `ps`, or restart it with modelnet-peer join",
    )
