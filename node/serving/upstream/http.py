"""HTTP to one server, as a peer may do it for strangers: bounded, without redirects, proxies or cookies.

The URL and the headers are the publisher's alone; a caller gives a body. What arrives is bounded in size and
in silence, and is never unpacked: `identity` is asked for, and anything else refused. Whatever goes wrong on
the way becomes a LocalError.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import h11
import trio

from modelnet_p2p import __version__
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.upstream import json_values
from modelnet_p2p.node.serving.upstream.address import Address
from modelnet_p2p.node.serving.upstream.connection import Body, Connection, Gone, words_of
from modelnet_p2p.node.serving.upstream.faults import SERVER, fault_of

CONNECT_SECONDS = 5.0  # a server on this machine takes a millisecond, one abroad a second
SILENT_SECONDS = 300.0  # without a byte: a model may have to be loaded first, and a long prompt read
KEEP_SECONDS = 4.0  # that an idle connection is kept: uvicorn, under many of these servers, lets go after 5
DRAIN_SECONDS = 0.5  # that the end of an answer may take after its last event
MAX_IDLE = 8  # connections to one server; calls have at most as many as its models have slots
MAX_BODY_BYTES = 16 << 20  # of an answer that is not streamed: read in one go, in some 200 ms
MAX_FAULT_BYTES = 64 << 10  # of the body of a refusal, of which one line is kept
HIDDEN = "…"  # in the place of a key
KEYS = ("MODELNET_UPSTREAM_KEY", "OPENAI_API_KEY")  # of the publisher's environment; the first that is set

Dial = Callable[[str, int], Awaitable[trio.abc.Stream]]
DIAL: ContextVar[Dial] = ContextVar("DIAL", default=trio.open_tcp_stream)
"""By which way servers are reached; a network in memory may stand here."""


def key_of(address: Address, environ: Mapping[str, str]) -> tuple[str, str]:
    """The key for that server, and the variable that it is in; twice empty: none.

    A key for OpenAI that lies in the shell is not sent in clear over a network; one that was set for this is.
    """
    for name in KEYS:
        key = environ.get(name, "").strip()
        if not key or (name == "OPENAI_API_KEY" and not address.is_private):
            continue
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise LocalError(Code.BAD_INPUT, f"{name} holds what cannot be a key: it goes into a header")
        return key, name
    return "", ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The head of an answer, and its body as it comes."""

    status: int
    headers: Mapping[str, str]
    body: Body

    @property
    def streams(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    async def whole(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """The body; raises LocalError (too-large) beyond `limit`."""
        parts: list[bytes] = []
        size = 0
        async for part in self.body:
            size += len(part)
            if size > limit:
                raise LocalError(Code.TOO_LARGE, f"{SERVER} sent an answer of more than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    async def to_its_end(self) -> None:
        """Past the end that is due now: then the connection serves the next request, and is closed else."""
        with trio.move_on_after(DRAIN_SECONDS):
            async for _ in self.body:
                break

    async def json(self) -> object:
        return json_values.load(await self.whole())


class Http:
    """Connections to one server; made by `open_http`."""

    def __init__(self, address: Address, key: str) -> None:
        self._address = address
        self._dial = DIAL.get()
        self._key = key
        self._idle: list[Connection] = []  # the last one that was used is used next
        self._open: set[Connection] = set()
        self._headers = [
            ("Host", address.authority),
            ("User-Agent", f"modelnet-peer/{__version__}"),
            ("Accept", "application/json, text/event-stream"),
            ("Accept-Encoding", "identity"),
            ("Content-Type", "application/json"),
            *([("Authorization", f"Bearer {key}")] if key else []),
        ]

    async def get(self, path: str, *, seconds: float) -> object:
        """The JSON at a path of the API; raises LocalError."""
        return await self._json("GET", self._address.path + path, b"", seconds)

    async def post(self, path: str, body: bytes, *, seconds: float = SILENT_SECONDS) -> object:
        """The JSON that answers `body`; raises LocalError."""
        return await self._json("POST", self._address.path + path, body, seconds)

    async def aside(self, path: str, body: bytes | None, *, seconds: float) -> object:
        """What a server of one kind tells outside of the API that all have; None where it tells nothing."""
        try:
            return await self._json("POST" if body else "GET", path, body or b"", seconds)
        except LocalError:
            return None

    def stream(self, path: str, body: bytes) -> AbstractAsyncContextManager[Reply]:
        """The answer to `body` as it comes. Leaving the block before its end closes the connection."""
        return self._request("POST", self._address.path + path, body, SILENT_SECONDS)

    async def _json(self, method: str, path: str, body: bytes, seconds: float) -> object:
        try:
            with trio.fail_after(seconds):
                async with self._request(method, path, body, seconds) as reply:
                    return await reply.json()
        except trio.TooSlowError as error:
            raise Gone(f"did not answer in {seconds:g} s") from error

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: bytes, seconds: float) -> AsyncIterator[Reply]:
        """An answer with status 200; raises LocalError."""
        connection, head = await self._ask(method, path, body, seconds)
        try:
            headers = {name.decode("latin-1"): text.decode("latin-1") for name, text in head.headers}
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise LocalError(Code.MODEL_ERROR, f"{SERVER} sent packed what was asked for plain")
            reply = Reply(head.status_code, headers, Body(connection, seconds))
            if reply.status != 200:
                raise fault_of(reply.status, await _told(reply, self._key), headers)
            yield reply
        finally:
            if len(self._idle) < MAX_IDLE and connection in self._open and connection.renew():
                self._idle.append(connection)
            else:
                await self._close(connection)

    async def _ask(
        self, method: str, path: str, body: bytes, seconds: float
    ) -> tuple[Connection, h11.Response]:
        """Send a request, and again where a connection that was kept turns out to be closed by now."""
        headers = [*self._headers, ("Content-Length", str(len(body)))]
        while True:
            kept = await self._take_idle()
            connection = kept or await self._connect()
            answered = False
            try:
                head = await connection.ask(method, path, headers, body, seconds)
                answered = True
                return connection, head
            except Gone as error:
                if kept is None or error.begun or error.silent:
                    raise
            finally:
                if not answered:
                    await self._close(connection)

    async def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if trio.current_time() - connection.idle_since < KEEP_SECONDS and not connection.is_stale:
                return connection
            await self._close(connection)
        return None

    async def _connect(self) -> Connection:
        address = self._address
        try:
            with trio.fail_after(CONNECT_SECONDS):
                stream = await self._dial(address.host, address.port)
                if address.scheme == "https":
                    stream = await _encrypted(stream, address.host)
        except trio.TooSlowError as error:
            raise Gone("cannot be reached: no answer") from error
        except OSError as error:
            raise Gone(f"cannot be reached: {words_of(error)}") from error
        connection = Connection(stream)
        self._open.add(connection)
        return connection

    async def _close(self, connection: Connection) -> None:
        self._open.discard(connection)
        await connection.close()

    async def close(self) -> None:
        """All of them, those in use too."""
        self._idle.clear()
        for connection in list(self._open):
            await self._close(connection)


async def _told(reply: Reply, key: str) -> object:
    """What a refusal says, JSON or text, without the key that it may quote."""
    try:
        data = await reply.whole(MAX_FAULT_BYTES)
    except LocalError:
        return None
    data = data.replace(key.encode(), HIDDEN.encode()) if key else data
    try:
        return json_values.load(data)
    except LocalError:
        return data.decode("utf-8", "replace")


async def _encrypted(stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
    secure = trio.SSLStream(stream, _trust(), server_hostname=host, https_compatible=True)
    try:
        await secure.do_handshake()
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        why = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else "no TLS"
        raise Gone(f"cannot be trusted: {why}") from error
    return secure


@cache
def _trust() -> ssl.SSLContext:
    """The certificates of this machine (and of SSL_CERT_FILE, where the peer was started with that)."""
    return ssl.create_default_context()


@asynccontextmanager
async def open_http(address: Address, key: str) -> AsyncIterator[Http]:
    """Connections to that server, made when they are needed; leaving the block closes them all."""
    http = Http(address, key)
    try:
        yield http
    finally:
        await http.close()
