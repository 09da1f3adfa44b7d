"""One HTTP request as the endpoints see it: its body on the way in, its answer on the way out.

Straight on ASGI's messages, without Starlette's request and response: a token is one `send`, and nothing
is held between the model and the socket. What is read is bounded, and so is what all requests hold together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import parse_qsl

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.gateway.errors import RETRY_AFTER, BadRequest, error_object, kind_of, to_bytes

MAX_JSON_BYTES = 16 << 20  # of one request: prompts with pictures in them; parsed it may take 20 times that
MAX_BODIES_BYTES = 1 << 30  # that the bodies of all requests may take together
MAX_QUERY = 64  # parameters behind the `?`
BODY_SECONDS = 60.0  # in which a body has arrived that the gateway is to wait for
SLICE_BYTES = 1 << 20  # of a large answer, so that a slow reader is met before all of it is copied

Headers = Iterable[tuple[bytes, bytes]]
JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"


class Gone(Exception):
    """The client has hung up: nobody waits for an answer."""


class Room:
    """What the bodies of all requests take together."""

    def __init__(self, limit: int = MAX_BODIES_BYTES) -> None:
        self._left = limit

    def take(self, size: int) -> None:
        """Raises LocalError (busy) where that is more than there is."""
        if size > self._left:
            raise LocalError(Code.BUSY, "the requests that the gateway holds are too large together")
        self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size


class Http:
    """A request, and the one answer to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, room: Room) -> None:
        self.scope = scope
        self.started = trio.current_time()
        self.answering = False  # the status is out; an error can only be told inside of the answer
        self._read = scope["method"] in ("GET", "HEAD")  # all of the request has been
        self._receive = receive
        self._send = send
        self._room = room
        self._held = 0

    # --- in ---

    def header(self, name: bytes) -> str:
        """The value of a header (its name in lower case), empty where there is none."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), "")

    def query(self) -> dict[str, str]:
        """What stands behind the `?`."""
        try:
            return dict(
                parse_qsl(
                    self.scope["query_string"].decode("ascii"),
                    keep_blank_values=True,
                    errors="strict",
                    max_num_fields=MAX_QUERY,
                )
            )
        except ValueError as error:
            raise BadRequest(f"the query of the URL cannot be read: {error}") from error

    def param(self, name: str) -> str:
        """A part of the path."""
        return str(self.scope["path_params"][name])

    async def body(self, limit: int) -> bytes:
        """All of the body; raises LocalError (too-large, busy, deadline) and Gone."""
        length = self.header(b"content-length")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        with trio.move_on_after(BODY_SECONDS) as scope:
            while not self._read:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                self._room.take(len(part))
                self._held += len(part)
                parts.append(part)
                self._read = not message.get("more_body", False)
        if scope.cancelled_caught:
            raise _too_slow()
        return b"".join(parts)

    async def json(self, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
        """The body, which must be a JSON object; raises BadRequest. Any: checked by who takes a field."""
        return parse_object(await self.body(limit))

    def release(self) -> None:
        """The body is needed no more."""
        self._room.give_back(self._held)
        self._held = 0

    # --- out ---

    async def start(self, status: int, kind: bytes, headers: Headers = ()) -> None:
        """The head of an answer whose body is written bit by bit; it leaves with the first of them."""
        self.answering = True
        self._hold()
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", kind), (b"cache-control", b"no-store"), *headers],
            }
        )

    def _hold(self) -> None:
        """What is sent next leaves with what is sent after it: of the socket's own, see serving."""
        self.scope["state"]["hold"]()

    async def write(self, data: bytes | memoryview) -> None:
        """Waits for a slow reader."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """The end, with the last bytes."""
        if data:
            self._hold()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def respond(
        self, status: int, body: bytes | memoryview, kind: bytes = JSON, headers: Headers = ()
    ) -> None:
        """A whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, kind, (length, *headers))
        if len(body) <= SLICE_BYTES:
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
            return
        whole = memoryview(body)
        for at in range(0, len(whole), SLICE_BYTES):
            await self.write(whole[at : at + SLICE_BYTES])
        await self.finish()

    async def say(self, value: Mapping[str, object], status: int = 200, headers: Headers = ()) -> None:
        """A JSON object."""
        await self.respond(status, to_bytes(value), JSON, headers)

    async def fail(self, error: ModelnetError) -> None:
        """An error instead of an answer."""
        headers = [(b"x-should-retry", b"true" if error.retryable else b"false")]
        if error.code is Code.BUSY:
            headers.append((b"retry-after", RETRY_AFTER))
        if error.peer is not None:
            headers.append((b"x-modelnet-peer", error.peer.encode()))
        await self.say(error_object(error), kind_of(error).status, headers)

    async def pass_to(self, app: ASGIApp) -> None:
        """Let another application answer it; what that reads of the body is counted as here, and must
        arrive in time."""
        until = trio.current_time() + BODY_SECONDS

        async def receive() -> Message:
            with trio.move_on_at(float("inf") if self._read else until) as scope:
                message = await self._receive()
            if scope.cancelled_caught:
                raise _too_slow()
            self._read = self._read or not message.get("more_body", False)
            size = len(message.get("body", b""))
            self._room.take(size)
            self._held += size
            return message

        async def send(message: Message) -> None:
            self.answering = True
            await self._send(message)

        await app(self.scope, receive, send)

    @contextmanager
    def while_there(self) -> Iterator[None]:
        """The block is cancelled when the client hangs up, with what it called; then Gone is raised."""
        on_gone: Callable[[Callable[[], None] | None], None] = self.scope["state"]["on_gone"]
        with trio.CancelScope() as scope:
            on_gone(scope.cancel)
            try:
                yield
            finally:
                on_gone(None)
        if scope.cancelled_caught:
            raise Gone


def parse_object(data: bytes, what: str = "the request's body") -> dict[str, Any]:
    """JSON as RFC 8259 has it, each key once; raises BadRequest, which says `what` is none.

    Any: of JSON's types.
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
        )
    except BadRequest:
        raise
    except RecursionError:
        raise BadRequest("the request's JSON is nested too deep") from None
    except ValueError as error:
        raise BadRequest(f"{what} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise BadRequest(f"{what} is not a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadRequest("a key is twice in one object of the request")
    return value


def _no_number(text: str) -> NoReturn:
    raise BadRequest(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadRequest(f"{text[:40]} is more than a number can be")
    return number


def _too_slow() -> LocalError:
    return LocalError(Code.DEADLINE, f"the request's body did not arrive within {BODY_SECONDS:g} s")


def _too_large(limit: int) -> LocalError:
    return LocalError(Code.TOO_LARGE, f"the request's body has more than {limit} bytes")
