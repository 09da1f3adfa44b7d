"""The gateway's sockets: where it listens, and its connections, each in a task of one nursery.

No client can take the peer down, or keep it from leaving: a connection ends with whatever it meets, and
those that answer when the gateway is closed are cut off after a moment.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.gateway.app import open_app
from modelnet_p2p.node.gateway.asgi import App
from modelnet_p2p.node.gateway.calling import Gateway
from modelnet_p2p.node.gateway.connection import Connection
from modelnet_p2p.node.gateway.hangups import HangUps, open_hangups
from modelnet_p2p.node.gateway.settings import GatewaySettings, parse_listen
from modelnet_p2p.node.single_error import single_error

if TYPE_CHECKING:
    from modelnet_p2p.node.peer import Peer

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 2048  # each a descriptor and some buffers; a crowd of streams needs one each
BACKLOG = 512  # connections that wait to be accepted: a crowd comes at once
GRACE_SECONDS = 0.5  # for answers under way when the gateway is closed; `join` ends within 5 s
ACCEPT_PAUSE = 0.1  # seconds after a failed accept, so that a lack of descriptors is no busy loop


@asynccontextmanager
async def open_gateway(peer: Peer, settings: GatewaySettings | str) -> AsyncIterator[str]:
    """Answer HTTP for `peer` while the block lasts; yields the URL, such as `http://127.0.0.1:8765`.

    `settings` may be `HOST:PORT` alone. Raises LocalError: in-use for a port that is taken, bad-input.
    """
    if isinstance(settings, str):
        host, port = parse_listen(settings)
        settings = GatewaySettings(host, port)
    gateway = Gateway(peer, settings)
    with _listen(settings) as listener:
        url = _url(listener)
        with single_error():
            async with open_app(gateway) as app, open_hangups() as hangups, trio.open_nursery() as nursery:
                server = _Server(app, hangups, nursery)
                nursery.start_soon(server.accept, listener)
                peer.gateway = url
                log.info("the gateway listens on %s", url)
                try:
                    yield url
                finally:
                    peer.gateway = None
                    gateway.leaving = True
                    listener.close()
                    with trio.CancelScope(shield=True):  # it has a bound of its own
                        await server.leave()
                    nursery.cancel_scope.cancel()


def _listen(settings: GatewaySettings) -> trio.socket.SocketType:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise LocalError(
            Code.IN_USE,
            f"the gateway cannot listen on {settings.authority}: {reason(error)}",
            hint=f"another port, or any that is free: --gateway {settings.host}:0",
        ) from error
    return trio.socket.from_stdlib_socket(listener)


def _url(listener: trio.socket.SocketType) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server:
    """The connections of one gateway."""

    def __init__(self, app: App, hangups: HangUps, nursery: trio.Nursery) -> None:
        self._app = app
        self._hangups = hangups
        self._nursery = nursery
        self._open: set[Connection] = set()
        self._emptied = trio.Event()

    async def accept(self, listener: trio.socket.SocketType) -> None:
        """Take connections until cancelled, or the listener is closed."""
        while True:
            try:
                sock, address = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:  # the client was gone already, or descriptors ran out: go on soon
                log.warning("the gateway cannot take a connection: %s", reason(error))
                await trio.sleep(ACCEPT_PAUSE)
                continue
            if len(self._open) >= MAX_CONNECTIONS:
                log.warning("the gateway has %d connections already", MAX_CONNECTIONS)
                sock.close()
                continue
            connection = Connection(self._app, sock, address[:2], self._hangups)
            self._open.add(connection)
            self._nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            self._open.discard(connection)
            if not self._open:
                self._emptied.set()

    async def leave(self) -> None:
        """Let answers under way end for a moment, then cut off those that have not."""
        self._emptied = trio.Event()
        for connection in self._open:
            connection.leave()
        if self._open:
            with trio.move_on_after(GRACE_SECONDS):
                await self._emptied.wait()
        for connection in self._open:
            connection.cut()
