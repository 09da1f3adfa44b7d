"""A client of the gateway's application without sockets: what it is told is ASGI's own messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from modelnet_p2p.node.gateway.app import open_app
from modelnet_p2p.node.gateway.calling import Gateway
from modelnet_p2p.node.gateway.settings import GatewaySettings


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of a stream's events, `[DONE]` left out."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        return [json.loads(line) for line in lines if line.startswith("{")]


class Client:
    """Asks an application; `Any`: what a test puts into JSON, and finds in it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.cut = False

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        hang_up: trio.Event | None = None,
    ) -> Answer:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        gone: list[Callable[[], None] | None] = [None]
        told = {"host": "127.0.0.1:8765", **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
            "state": {
                "cut": lambda: setattr(self, "cut", True),
                "on_gone": lambda on_gone: gone.insert(0, on_gone),
                "hold": lambda: None,
            },
        }
        half = len(data) // 2
        messages = [
            {"type": "http.request", "body": data[:half], "more_body": True},
            {"type": "http.request", "body": data[half:], "more_body": False},
        ]
        answer = Answer()

        async def receive() -> dict[str, object]:
            if messages:
                return messages.pop(0)
            await (trio.Event() if hang_up is None else hang_up).wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += bytes(message.get("body", b""))

        async def leave(hang_up: trio.Event) -> None:
            await hang_up.wait()
            if gone[0] is not None:
                gone[0]()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                if hang_up is not None:
                    nursery.start_soon(leave, hang_up)
                await self.app(scope, receive, send)
                nursery.cancel_scope.cancel()
        return answer

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        return await self.ask("POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()})


@pytest.fixture
def open_client() -> Any:
    """`async with open_client(peer, key=…) as client: await client.get("/healthz")`"""

    @asynccontextmanager
    async def opened(peer: Any, **settings: Any) -> AsyncIterator[Client]:
        async with open_app(Gateway(peer, GatewaySettings(**settings))) as app:
            yield Client(app)

    return opened
