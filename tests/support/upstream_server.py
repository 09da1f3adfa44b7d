"""An HTTP server as a test scripts it, on trio: what OpenAI-compatible servers say, and how they misbehave.

It speaks HTTP/1.1 by h11 over any stream: sockets (`on_a_socket`), or a network in memory (`in_memory`). Each
path has a handler that gets the request's JSON and gives a `Say`; what was asked is kept.
"""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
import trio
import trio.testing

from modelnet_p2p.node.serving.upstream.http import DIAL

Json = Any  # Any: whatever a server may say


@dataclass(frozen=True, slots=True)
class Say:
    """An answer: a status, and a body in parts."""

    status: int = 200
    body: Iterable[bytes] = ()
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    hang: bool = False  # after the body: no end comes
    cut: bool = False  # after the body: the connection is closed without the end


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Json


Handler = Callable[[Json], Say]


def say_json(body: Json, status: int = 200, **headers: str) -> Say:
    return Say(status, [json.dumps(body).encode()], headers=tuple(headers.items()))


def say_events(*parts: bytes, hang: bool = False, cut: bool = False) -> Say:
    return Say(200, parts, "text/event-stream", hang=hang, cut=cut)


def chat_events(*texts: str, usage: bool = True) -> list[bytes]:
    """A chat as vLLM streams it."""
    chunks = [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    chunks += [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    chunks += [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]
    lines: list[Json] = [{"object": "chat.completion.chunk", "choices": [chunk]} for chunk in chunks]
    if usage:
        count = {"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)}
        lines.append({"object": "chat.completion.chunk", "choices": [], "usage": count})
    return [f"data: {json.dumps(line)}\n\n".encode() for line in lines] + [b"data: [DONE]\n\n"]


def chat_reply(text: str) -> Json:
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


def model_list(*names: str, **fields: Json) -> Json:
    return {"object": "list", "data": [{"id": name, "object": "model", **fields} for name in names]}


@dataclass(slots=True)
class Server:
    """What listens; `handlers` may be changed at any time."""

    handlers: dict[str, Handler] = field(default_factory=dict)  # by "METHOD /path"
    asked: list[Asked] = field(default_factory=list)
    open: int = 0  # connections
    away: bool = False  # nothing listens
    frozen: bool = False  # connections are taken, and nothing is said
    closed: trio.Event = field(default_factory=trio.Event)  # set whenever a connection has ended
    scopes: set[trio.CancelScope] = field(default_factory=set)  # one of each connection

    def hang_up(self) -> None:
        """Close all connections."""
        for scope in self.scopes:
            scope.cancel()

    def paths(self) -> list[str]:
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    def on(self, path: str, said: Say | Handler) -> None:
        self.handlers[path] = said if callable(said) else (lambda body: said)

    def serve_chat(self, *names: str, texts: tuple[str, ...] = ("Hel", "lo"), **fields: Json) -> None:
        """Be a server of chat models."""
        self.on("GET /v1/models", say_json(model_list(*names, **fields)))

        def chat(body: Json) -> Say:
            if body["model"] not in names:
                return say_json({"error": {"message": f"model {body['model']!r} not found"}}, 404)
            if body.get("stream"):
                return say_events(*chat_events(*texts))
            return say_json(chat_reply("".join(texts)))

        self.on("POST /v1/chat/completions", chat)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, until either side ends it."""
        self.open += 1
        connection = h11.Connection(h11.SERVER)
        try:
            with trio.CancelScope() as scope:
                self.scopes.add(scope)
                async with stream:
                    while await self._answer(stream, connection):
                        connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the client has left
        finally:
            self.scopes.discard(scope)
            self.open -= 1
            self.closed.set()

    async def _answer(self, stream: trio.abc.Stream, connection: h11.Connection) -> bool:
        request, body = await _next(stream, connection), b""
        if not isinstance(request, h11.Request):
            return False
        while isinstance(part := await _next(stream, connection), h11.Data):
            body += part.data
        headers = {name.decode(): text.decode() for name, text in request.headers}
        asked = Asked(
            request.method.decode(), request.target.decode(), headers, json.loads(body) if body else None
        )
        self.asked.append(asked)
        if self.frozen:
            await _until_left(stream)
            return False
        handler = self.handlers.get(f"{asked.method} {asked.path}")
        said = handler(asked.body) if handler else say_json({"detail": "Not Found"}, 404)
        await self._say(said, stream, connection)
        if said.hang:
            await _until_left(stream)
        return not (said.hang or said.cut)

    async def _say(self, said: Say, stream: trio.abc.Stream, connection: h11.Connection) -> None:
        head = [("content-type", said.kind), ("transfer-encoding", "chunked"), *said.headers]
        data = connection.send(h11.Response(status_code=said.status, headers=head))
        await stream.send_all(data or b"")
        for part in said.body:
            await stream.send_all(connection.send(h11.Data(data=part)) or b"")
        if not (said.hang or said.cut):
            await stream.send_all(connection.send(h11.EndOfMessage()) or b"")


async def _next(stream: trio.abc.Stream, connection: h11.Connection) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive_some(65536))
    return event


async def _until_left(stream: trio.abc.Stream) -> None:
    while await stream.receive_some(65536):
        pass


@asynccontextmanager
async def in_memory(**servers: Server) -> AsyncIterator[None]:
    """While the block runs, http://NAME/… leads to the server of that name, and nothing leads elsewhere."""
    async with trio.open_nursery() as nursery:

        async def dial(host: str, port: int) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            server = servers.get(host)
            if server is None or server.away or port != 80:
                raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody at {host}:{port}")
            mine, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve, theirs)
            return mine

        token = DIAL.set(dial)
        try:
            yield
        finally:
            DIAL.reset(token)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def on_a_socket(server: Server, port: int = 0) -> AsyncIterator[int]:
    """Listen on 127.0.0.1; yields the port. Leaving the block closes all connections."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, server.serve, listeners))
        try:
            yield listeners[0].socket.getsockname()[1]
        finally:
            nursery.cancel_scope.cancel()
