"""Who may ask the gateway: looked at before anything of a request is read.

A page in a browser is another party than the person at the keyboard, although both come from 127.0.0.1.
So a request must name this host as its own (a page of `evil.example` whose name now points to 127.0.0.1
does not), and one that a page sent must come from the gateway itself or from an origin that was allowed.
Elsewhere than on loopback the key decides.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelnet_p2p.node.gateway.errors import (
    FOREIGN_HOST,
    FOREIGN_ORIGIN,
    UNAUTHORIZED,
    Kind,
    plain_object,
    to_bytes,
)
from modelnet_p2p.node.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # they tell nothing but yes or no: probes have no key
LINGER_BYTES = 4 << 20  # read on of a request that was answered before its end: so the answer arrives ...
LINGER_SECONDS = 2.0  # ... but not for longer than this
_METHODS = b"GET, POST, DELETE"
_ALLOWED = (
    b"authorization, content-type, x-modelnet-timeout, last-event-id,"
    b" mcp-session-id, mcp-protocol-version, mcp-method, mcp-name"
)
_EXPOSED = (
    b"x-modelnet-peer, x-modelnet-digest, x-modelnet-model, x-modelnet-attempts, x-modelnet-hops,"
    b" x-modelnet-queue-ms, x-modelnet-network-ms, x-modelnet-model-ms, mcp-session-id"
)
_PREFLIGHT_SECONDS = b"600"

RawHeaders = Sequence[tuple[bytes, bytes]]


class Gate:
    """The outermost application: refuses, or hands on."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings
        self._bearer = None if settings.key is None else f"Bearer {settings.key}".encode()
        self._origins = frozenset(origin.encode() for origin in settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        reading = _Reading(receive)
        try:
            await self._pass(scope, reading, reading.ends_first(send))
        finally:
            if not reading.done and not await reading.drain():
                scope["state"]["cut"]()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: RawHeaders = scope["headers"]
        origin = _value(headers, b"origin")
        if (refusal := self._foreign(headers, origin)) is not None:
            await _refuse(send, *refusal)
        elif origin in self._origins and scope["method"] == "OPTIONS":
            await _answer(send, 204, b"", _cors(origin, preflight=True))
        elif not self._may(scope, headers):
            words = "the gateway's key is missing or wrong: Authorization: Bearer …"
            await _refuse(send, UNAUTHORIZED, words, [(b"www-authenticate", b"Bearer")])
        else:
            await self._app(scope, receive, _with_cors(send, origin) if origin in self._origins else send)

    def _foreign(self, headers: RawHeaders, origin: bytes) -> tuple[Kind, str] | None:
        host = _value(headers, b"host")
        if self._bearer is None and not is_own_host(host):
            return (
                FOREIGN_HOST,
                f"this gateway is not {host[:80].decode('latin-1')!r}: ask 127.0.0.1 or localhost",
            )
        if origin and origin not in self._origins and origin != b"http://" + host:
            words = f"pages of {origin[:80].decode('latin-1')} may not ask this gateway"
            return FOREIGN_ORIGIN, f"{words} (its owner can allow them: gateway_origins in config.toml)"
        if not origin and _value(headers, b"sec-fetch-site") == b"cross-site":
            return FOREIGN_ORIGIN, "another site's page may not ask this gateway"
        return None

    def _may(self, scope: Scope, headers: RawHeaders) -> bool:
        if self._bearer is None or scope["path"] in OPEN_PATHS:
            return True
        given = _value(headers, b"authorization")
        return hmac.compare_digest(given, self._bearer)


class _Reading:
    """What an application reads of a request. hypercorn waits, for good, for one that answers and leaves
    some of it unread; a client that writes all before it reads must be read from, or the answer is lost.
    And where an answer ends before its request, hypercorn closes under a client that asks on there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.done = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.done = self.done or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    def ends_first(self, send: Send) -> Send:
        """`send`, which ends no answer before the request has ended; what it says is sent at once."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body") and not self.done:
                await send({**message, "more_body": True})
                await self.drain()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        return sending

    async def drain(self) -> bool:
        """Read on; whether that came to the end."""
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_SECONDS):
            while not self.done and left > 0:
                left -= len((await self()).get("body", b"")) + 1
        return self.done


@lru_cache(maxsize=64)  # of 32 KiB at most; clients say the same again and again
def is_own_host(host: bytes) -> bool:
    """Whether a Host header names this machine by itself: a name that no other one can point elsewhere."""
    name = host.decode("latin-1").strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _value(headers: RawHeaders, name: bytes) -> bytes:
    """The value of a header that may be there once; two of them are worth nothing."""
    values = [value for key, value in headers if key == name]
    return values[0] if len(values) == 1 else b"" if not values else b"\0"


def _cors(origin: bytes, *, preflight: bool = False) -> list[tuple[bytes, bytes]]:
    headers = [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
    if preflight:
        headers += [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _ALLOWED),
            (b"access-control-max-age", _PREFLIGHT_SECONDS),
        ]
    else:
        headers.append((b"access-control-expose-headers", _EXPOSED))
    return headers


def _with_cors(send: Send, origin: bytes) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_cors(origin)]}
        await send(message)

    return sending


async def _refuse(send: Send, kind: Kind, words: str, headers: RawHeaders = ()) -> None:
    log.info("a request was refused: %s", words)
    body = to_bytes(plain_object(kind, words))
    await _answer(send, kind.status, body, [(b"content-type", b"application/json"), *headers])


async def _answer(send: Send, status: int, body: bytes, headers: RawHeaders) -> None:
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
