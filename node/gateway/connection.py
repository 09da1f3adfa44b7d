"""One connection of the gateway: HTTP/1.1 by h11 on a socket, its requests answered one after the other.

All of it is one task: it reads a request, runs the application, which writes its answer straight into the
socket, and reads the next one. That a client hangs up meanwhile is told by `hangups`. Nothing that a client
sends, or that an answer meets, ends more than its connection.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from time import time
from urllib.parse import unquote

import h11
import trio

from modelnet_p2p.errors import Code
from modelnet_p2p.node.gateway.asgi import App, Message
from modelnet_p2p.node.gateway.errors import KINDS, plain_object, to_bytes
from modelnet_p2p.node.gateway.hangups import HangUps

log = logging.getLogger(__name__)

HEADER_BYTES = 32 << 10  # of a request's head
HEAD_SECONDS = 15.0  # in which a head has come, and for which an idle connection is kept
STALL_SECONDS = 30.0  # without a byte taken by a reader that holds a model's slot
LINGER_BYTES = 4 << 20  # read on of a request that was answered before its end: so the answer arrives ...
LINGER_SECONDS = 2.0  # ... but not for longer than this
READ_BYTES = 64 << 10
WRITES_AT_ONCE = 16  # of tokens that are all there: a third of a millisecond, then others have their turn
_BUG = "a fault inside of the gateway: its traceback is in the peer's log"
_NO_BODY = frozenset({204, 304})
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})


class Connection:
    """A client's connection; `serve` it, once. `leave` and `cut` may be called meanwhile."""

    def __init__(
        self, app: App, sock: trio.socket.SocketType, client: tuple[str, int], hangups: HangUps
    ) -> None:
        self._app = app
        self._client = client
        self._sock = sock
        self._handle = sock.fileno()
        self._hangups = hangups
        self._machine = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES)
        self._scope = trio.CancelScope()
        self._idle = False  # it waits for a request
        self._leaving = False  # and takes no further one
        self._gone = trio.Event()  # the client has hung up, or reads no more
        self._on_gone: Callable[[], None] | None = None
        self._silent = False  # nothing more can be said to it
        self._unpaused = 0  # writes since others had their turn
        # of the request that is being answered
        self._parts: list[bytes] = []  # of its body: come, and not yet taken
        self._whole = False  # all of its body has come ...
        self._taken = False  # ... and was taken
        self._start: Message | None = None  # of the answer, which waits for its body
        self._bodiless = False

    async def serve(self) -> None:
        """Answer requests until the client ends the connection, or does what ends it."""
        try:
            with self._scope:
                self._hangups.expect(self._handle, self._hung_up)
                await self._serve()
        except BaseExceptionGroup as group:
            bugs, rest = group.split(Exception)  # the rest is that the gateway is being closed
            if bugs is not None:
                log.error("a connection of the gateway met a bug", exc_info=bugs)
                await self._tell_of_bug()
            if rest is not None:
                raise rest from None
        except Exception:
            log.exception("a connection of the gateway met a bug")
            await self._tell_of_bug()
        finally:
            self._hangups.forget(self._handle)
            self._sock.close()

    def leave(self) -> None:
        """End it after the answer that is under way."""
        self._leaving = True
        if self._idle:
            self._scope.cancel()

    def cut(self) -> None:
        """End it now."""
        self._scope.cancel()

    async def _serve(self) -> None:
        while (request := await self._next_request()) is not None:
            await self._answer(request)
            if not await self._is_ready():
                return

    # --- in ---

    async def _next_request(self) -> h11.Request | None:
        machine = self._machine
        self._idle = True
        try:
            with trio.move_on_after(HEAD_SECONDS):
                if (event := machine.next_event()) is not h11.NEED_DATA:
                    await trio.lowlevel.checkpoint()  # a thousand requests may come in one piece
                while event is h11.NEED_DATA:
                    await trio.lowlevel.wait_readable(self._handle)
                    machine.receive_data(await self._read())
                    event = machine.next_event()
            if not isinstance(event, h11.Request):  # it has taken too long, or there is none
                return None
            self._parts, self._whole, self._taken = [], False, False
            self._take_events()
            if not (self._whole or machine.they_are_waiting_for_100_continue):
                self._look()
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            return None
        finally:
            self._idle = False
        return event

    async def _read(self) -> bytes:
        """What has come, or comes next; empty at the end."""
        while True:
            try:
                return os.read(self._handle, READ_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._handle)
            except OSError:  # broken off, which is an end as well
                return b""

    def _look(self) -> None:
        """Read once, where it takes no waiting: most clients send head and body by themselves, at once."""
        try:
            self._machine.receive_data(os.read(self._handle, READ_BYTES))
        except OSError:  # there is nothing yet; or it is broken off, as whoever reads on will be told
            return
        self._take_events()

    def _take_events(self) -> None:
        """What has come of the body; raises h11.RemoteProtocolError."""
        while not self._whole:
            event = self._machine.next_event()
            if isinstance(event, h11.Data):
                self._parts.append(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._whole = True
            else:
                return

    async def receive(self) -> Message:
        """ASGI's: the body as it comes, and then that the client has hung up."""
        if self._taken:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            if not (self._parts or self._whole):
                await self._read_on()
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            self._hung_up()
            return {"type": "http.disconnect"}
        body = b"".join(self._parts)
        self._parts.clear()
        self._taken = self._whole
        return {"type": "http.request", "body": body, "more_body": not self._whole}

    async def _read_on(self) -> None:
        """More of the body; raises h11.RemoteProtocolError, also where it breaks off."""
        machine = self._machine
        if machine.they_are_waiting_for_100_continue:
            await self._write(machine.send(h11.InformationalResponse(status_code=100, headers=[])))
        while not (self._parts or self._whole):
            await trio.lowlevel.checkpoint()  # a large body that comes fast must not hold up the peer
            machine.receive_data(await self._read())
            self._take_events()

    # --- the answer ---

    async def _answer(self, request: h11.Request) -> None:
        target, _, query = request.target.partition(b"?")
        path = target.decode("ascii")
        self._start = None
        self._bodiless = request.method == b"HEAD"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": target,
            "query_string": query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw_items()],
            "client": self._client,
            "server": None,
            "state": {"on_gone": self._tell, "come": self._whole},
            "extensions": {},
        }
        await self._app(scope, self.receive, self.send)
        self._on_gone = None

    async def send(self, message: Message) -> None:
        """ASGI's; waits for a slow reader, and does nothing where nobody reads any more."""
        if self._silent:
            return
        machine = self._machine
        if message["type"] == "http.response.start":
            self._start = message
            self._bodiless = self._bodiless or message["status"] in _NO_BODY
            if not message.get("held"):
                await self._write(self._take_head())
            return
        body = message.get("body", b"")
        data = [self._take_head()]
        if body and not self._bodiless:
            data.append(machine.send(h11.Data(data=body)))
        if not message.get("more_body", False):
            data.append(machine.send(h11.EndOfMessage()))
        if whole := b"".join(data):
            await self._write(whole)

    def _take_head(self) -> bytes:
        """Of the answer that has been started; empty where it is out. h11 is told what concerns it, and looks
        over nothing else: it would do so four times."""
        start, self._start = self._start, None
        if start is None:
            return b""
        framing, lines = [], [b"date: " + _date(int(time()))]
        for name, value in start.get("headers", ()):
            if name.lower() in _FRAMING:
                framing.append((name, value))
            else:
                lines.append(name + b": " + value)
        rest = b"\r\n".join(lines)
        if not len(lines) - 1 == rest.count(b"\r") == rest.count(b"\n") or b"\0" in rest:
            raise ValueError("a header of the answer holds the end of a line")
        head = self._machine.send(h11.Response(status_code=start["status"], headers=framing))
        return head[:-2] + rest + b"\r\n\r\n"

    async def _write(self, data: bytes) -> None:
        """All of it. Half of it is never followed by anything else."""
        self._unpaused += 1
        if self._unpaused >= WRITES_AT_ONCE:
            self._unpaused = 0
            await trio.lowlevel.checkpoint()
        try:
            sent = os.write(self._handle, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._silent = True
            self._hung_up()
            return
        if sent < len(data):  # seldom: a token is far smaller than a socket's buffer
            await self._write_slowly(memoryview(data)[sent:])

    async def _write_slowly(self, rest: memoryview) -> None:
        try:
            with trio.move_on_after(STALL_SECONDS):
                while rest:
                    await trio.lowlevel.wait_writable(self._handle)
                    try:
                        rest = rest[os.write(self._handle, rest) :]
                    except BlockingIOError:
                        continue
        except OSError:
            pass  # it broke off
        finally:
            if rest:
                self._silent = self._leaving = True
                self._hung_up()

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Tell who sends what is no request that it is none, unless an answer has begun."""
        await self._end_with(error.error_status_hint, b"")

    async def _tell_of_bug(self) -> None:
        await self._end_with(500, to_bytes(plain_object(KINDS[Code.INTERNAL], _BUG)))

    async def _end_with(self, status: int, body: bytes) -> None:
        self._leaving = True
        if self._machine.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        if body:
            headers.append((b"content-type", b"application/json"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers, "held": True})
        await self.send({"type": "http.response.body", "body": body})
        self._silent = True

    # --- between two requests ---

    async def _is_ready(self) -> bool:
        """Whether the next request may be read: all of the last one was, and it was answered."""
        machine = self._machine
        if machine.our_state is h11.SEND_RESPONSE and not self._gone.is_set():
            raise RuntimeError("the application gave no answer")
        if not self._whole and not await self._drain():
            return False
        if self._leaving or machine.our_state is not h11.DONE or machine.their_state is not h11.DONE:
            return False
        machine.start_next_cycle()
        return True

    async def _drain(self) -> bool:
        """Read on what the application left: a client that writes all before it reads must be read from,
        or the answer is lost. Whether that came to the end."""
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_SECONDS):
            while not self._taken and left > 0:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    return False
                left -= len(message["body"]) + 1
        return self._whole

    # --- the client's end ---

    def _tell(self, on_gone: Callable[[], None] | None) -> None:
        self._on_gone = on_gone
        if on_gone is not None and self._gone.is_set():
            on_gone()

    def _hung_up(self) -> None:
        self._gone.set()
        if self._on_gone is not None:
            self._on_gone()


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
