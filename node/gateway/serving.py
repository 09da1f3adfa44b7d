"""The gateway's sockets: hypercorn's trio worker, a connection at a time, in a nursery of its own.

hypercorn's own loop would end with whatever one connection raises, and shields its writes from
cancellation. So each connection runs here behind a guard, on a stream whose writes end when a reader
takes nothing for too long or when the gateway is closed: no client can take the peer down, or keep it
from leaving.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.types import ASGIApp

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.gateway.app import open_app
from modelnet_p2p.node.gateway.calling import Gateway
from modelnet_p2p.node.gateway.settings import GatewaySettings, parse_listen
from modelnet_p2p.node.single_error import single_error

if TYPE_CHECKING:
    from modelnet_p2p.node.peer import Peer

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 2048  # each a descriptor and some buffers; a crowd of streams needs one each
BACKLOG = 512  # connections that wait to be accepted: a crowd comes at once
HEADER_BYTES = 32 << 10  # of a request's head
HEAD_SECONDS = 15.0  # in which a head has come, and for which an idle connection is kept
STALL_SECONDS = 30.0  # without a byte taken by a reader that holds a model's slot
GRACE_SECONDS = 0.5  # for answers under way when the gateway is closed; `join` ends within 5 s
READ_BYTES = 64 << 10
WRITES_AT_ONCE = 16  # of tokens that are all there: half a millisecond, then others have their turn
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
            async with open_app(gateway) as app, trio.open_nursery() as nursery:
                server = _Server(app, nursery)
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

    def __init__(self, app: ASGIApp, nursery: trio.Nursery) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # Starlette and hypercorn name the same thing apart
        self._nursery = nursery
        self._config = _config()
        self._context = WorkerContext(None)
        self._open: set[_Stream] = set()
        self._emptied = trio.Event()

    async def accept(self, listener: trio.socket.SocketType) -> None:
        """Take connections until cancelled, or the listener is closed."""
        while True:
            try:
                connection, _ = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:  # the client was gone already, or descriptors ran out: go on soon
                log.warning("the gateway cannot take a connection: %s", reason(error))
                await trio.sleep(ACCEPT_PAUSE)
                continue
            if len(self._open) >= MAX_CONNECTIONS:
                log.warning("the gateway has %d connections already", MAX_CONNECTIONS)
                connection.close()
                continue
            stream = _Stream(trio.SocketStream(connection))
            self._open.add(stream)
            self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: _Stream) -> None:
        """One connection; whatever it sends or however it goes, the others stay."""
        try:
            with stream.scope:
                state = ConnectionState({"cut": stream.cut, "on_gone": stream.on_gone, "hold": stream.hold})
                await _Http1(self._app, self._config, self._context, state, stream)  # type: ignore[arg-type]  # see _Stream
        except BaseExceptionGroup as group:
            bugs, rest = group.split(Exception)  # the rest is that the gateway is being closed
            if bugs is not None:
                log.error("a connection of the gateway met a bug", exc_info=bugs)
            if rest is not None:
                raise rest from None
        except Exception:
            log.exception("a connection of the gateway met a bug")
        finally:
            stream.close()
            self._open.discard(stream)
            if not self._open:
                self._emptied.set()

    async def leave(self) -> None:
        """Let answers under way end for a moment, then cut off those that have not."""
        await self._context.terminated.set()  # connections take no further request
        self._emptied = trio.Event()
        for stream in self._open:
            stream.pauses.leave()
        if self._open:
            with trio.move_on_after(GRACE_SECONDS):
                await self._emptied.wait()
        for stream in self._open:
            stream.cut()


class _Pauses:
    """How long a connection may wait for a request: a deadline, where hypercorn has a task for each wait."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()  # around all reading
        self._leaving = False

    async def restart(self, group: object, action: object) -> None:
        """A pause begins; hypercorn's words for it."""
        self.scope.deadline = trio.current_time() + HEAD_SECONDS
        if self._leaving:
            self.scope.cancel()

    async def stop(self) -> None:
        """A request has come."""
        self.scope.deadline = math.inf

    def leave(self) -> None:
        """From now on there is none."""
        self._leaving = True
        if self.scope.deadline != math.inf:
            self.scope.cancel()


class _Http1(TCPServer):
    """A connection without HTTP/2, which nobody needs here and whose silent clients hypercorn never ends.

    A client that is gone is gone at once: hypercorn would keep its connection for as long as an idle one.
    What the socket takes at once needs neither lock nor scope, and leaves without a turn of the scheduler.
    """

    stream: _Stream  # type: ignore[assignment]  # see there
    _read_all = False

    @property
    def protocol(self) -> ProtocolWrapper:  # set once, when a connection begins
        return self._wrapper

    @protocol.setter
    def protocol(self, wrapper: ProtocolWrapper) -> None:
        self._wrapper = wrapper
        self.idle_task = self.stream.pauses  # type: ignore[assignment]  # it is used as one
        if isinstance(wrapper.protocol, H11Protocol):  # as always, without TLS
            wrapper.protocol._check_protocol = _no_upgrade  # type: ignore[method-assign]

    async def _read_data(self) -> None:
        with self.stream.pauses.scope:
            while True:
                try:
                    data = await self.stream.receive_some(READ_BYTES)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                await self.protocol.handle(RawData(bytes(data)))
                if not data:
                    break
        self.stream.hung_up()
        await self.protocol.handle(Closed())
        self._read_all = True

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData) and not self.send_lock.locked():
            try:
                rest = await self.stream.send_now(event.data)
            except trio.BrokenResourceError:
                await self.protocol.handle(Closed())
                return
            if not rest:
                return
            event = RawData(rest)
        if not (self._read_all and isinstance(event, Updated)):
            await super().protocol_send(event)


async def _no_upgrade(event: object) -> None:
    """To another protocol, whatever a client asks for."""


class _Stream:
    """A connection as hypercorn sees it: what it uses of `trio.SocketStream`, with writes that end."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self.scope = trio.CancelScope()
        self.pauses = _Pauses()
        self.receive_some = stream.receive_some
        self.aclose = stream.aclose
        self._stream = stream
        self._writing: trio.CancelScope | None = None
        self._cut = False
        self._gone = False
        self._on_gone: Callable[[], None] | None = None
        self._holds = False
        self._held = b""
        self._unpaused = 0  # writes since others had their turn

    # --- for the application, in its scope's `state` ---

    def on_gone(self, on_gone: Callable[[], None] | None) -> None:
        """What is to be called when the client hangs up, at once if it has; None: nobody is to be told."""
        self._on_gone = on_gone
        if self._gone and on_gone is not None:
            on_gone()

    def hold(self) -> None:
        """What is sent next waits for what is sent after it, so that both leave in one piece."""
        self._holds = True

    # --- for hypercorn ---

    def hung_up(self) -> None:
        self._gone = True
        if self._on_gone is not None:
            self._on_gone()

    async def send_now(self, data: bytes) -> bytes:
        """As much as the socket takes at once; returns the rest, which is to be given to `send_all`.

        Raises BrokenResourceError when the client is gone.
        """
        self._unpaused += 1
        if self._unpaused >= WRITES_AT_ONCE:
            self._unpaused = 0
            await trio.lowlevel.cancel_shielded_checkpoint()
        data, self._held = self._held + data, b""
        if self._holds:
            self._holds, self._held = False, data
            return b""
        return data[self._write(data) :] if data else b""

    async def send_all(self, data: bytes | memoryview) -> None:
        """Raises BrokenResourceError when the reader takes nothing for too long, or the gateway is closed.

        hypercorn shields this from cancellation, so that half a frame is never followed by another one.
        """
        if self._held:
            data, self._held = self._held + bytes(data), b""
        with trio.CancelScope(deadline=trio.current_time() + STALL_SECONDS) as scope:
            self._writing = scope
            if self._cut:
                scope.cancel()
            try:
                await self._stream.send_all(data)
            finally:
                self._writing = None
        if scope.cancelled_caught:
            self.close()
            self.hung_up()
            raise trio.BrokenResourceError("the reader takes nothing")

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self.socket.fileno(), data) if not self._cut else 0
        except BlockingIOError:
            return 0
        except OSError as error:  # the client is gone
            self.hung_up()
            raise trio.BrokenResourceError(reason(error)) from error

    async def send_eof(self) -> None:
        """What still waits for more leaves before the end."""
        data, self._held = self._held, b""
        if data:
            self._write(data)
        await self._stream.send_eof()

    def cut(self) -> None:
        """End it now."""
        self._cut = True
        if self._writing is not None:
            self._writing.cancel()
        self.scope.cancel()

    def close(self) -> None:
        self.socket.close()


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log  # what applications raise, with tracebacks; and nothing of its own to stderr
    config.include_server_header = False
    config.h11_max_incomplete_size = HEADER_BYTES
    config.keep_alive_timeout = HEAD_SECONDS
    config.keep_alive_max_requests = 1 << 20  # a client keeps its connection for as long as it likes
    config.graceful_timeout = GRACE_SECONDS
    return config
