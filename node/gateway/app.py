"""The gateway's application: the one place where routes are put together, and what surrounds each of them.

A part that needs more than routes (a session manager with tasks of its own) is entered in `open_app`, and
lives as long as the gateway.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

from modelnet_p2p.errors import ModelnetError
from modelnet_p2p.node.control.table import dispatch
from modelnet_p2p.node.gateway.asgi import App, Receive, Scope, Send
from modelnet_p2p.node.gateway.calling import Gateway
from modelnet_p2p.node.gateway.chat import chat_completions, completions
from modelnet_p2p.node.gateway.embeddings import embeddings
from modelnet_p2p.node.gateway.errors import NO_ROUTE, WRONG_METHOD, plain_object
from modelnet_p2p.node.gateway.gate import Gate
from modelnet_p2p.node.gateway.health import healthz, metrics, readyz
from modelnet_p2p.node.gateway.http import Gone, Http
from modelnet_p2p.node.gateway.invoke import invoke
from modelnet_p2p.node.gateway.models import list_models, show_model
from modelnet_p2p.node.gateway.responses import responses
from modelnet_p2p.node.mcp.door import open_door

log = logging.getLogger(__name__)

Handler = Callable[[Gateway, Http], Awaitable[None]]
GET, POST = ("GET", "HEAD"), ("POST",)


class Route(NamedTuple):
    """What one path answers; `path` may end with `{model}`, which stands for all that follows."""

    path: str
    handler: Handler
    methods: Sequence[str]
    counted: bool = True  # among those that the gateway answers at once; probes are not


@asynccontextmanager
async def open_app(gateway: Gateway) -> AsyncIterator[App]:
    """All that the gateway answers, as long as the block lasts."""
    async with open_door(partial(dispatch, gateway.peer)) as door:
        routes = [
            Route("/v1/chat/completions", chat_completions, POST),
            Route("/v1/completions", completions, POST),
            Route("/v1/embeddings", embeddings, POST),
            Route("/v1/responses", responses, POST),
            Route("/v1/models", list_models, GET),
            Route("/v1/models/{model}", show_model, GET),
            Route("/api/v1/invoke/{model}", invoke, POST),
            Route("/mcp", door.answer, ("GET", "HEAD", "POST", "DELETE")),
            Route("/healthz", healthz, GET, counted=False),
            Route("/readyz", readyz, GET, counted=False),
            Route("/metrics", metrics, GET, counted=False),
        ]
        yield Gate(Routes(gateway, routes), gateway.settings)


class Routes:
    """Hands a request to its handler, within the bound on requests, and tells errors as objects."""

    def __init__(self, gateway: Gateway, routes: Sequence[Route]) -> None:
        self._gateway = gateway
        self._exact = {route.path: route for route in routes}
        self._below = {
            route.path.removesuffix("{model}"): route for route in routes if route.path.endswith("{model}")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = Http(scope, receive, send, self._gateway.room)
        path: str = scope["path"]
        if (route := self._exact.get(path) or self._of_a_model(http, path)) is None:
            await http.say(plain_object(NO_ROUTE, _no(scope)), NO_ROUTE.status)
        elif scope["method"] not in route.methods:
            allowed = ", ".join(route.methods).encode()
            await http.say(plain_object(WRONG_METHOD, _no(scope)), WRONG_METHOD.status, [(b"allow", allowed)])
        else:
            await self._answer(route, http)

    def _of_a_model(self, http: Http, path: str) -> Route | None:
        for prefix, route in self._below.items():
            if path.startswith(prefix):
                http.model = path[len(prefix) :]
                return route
        return None

    async def _answer(self, route: Route, http: Http) -> None:
        gateway = self._gateway
        try:
            if not route.counted:
                await route.handler(gateway, http)
                return
            gateway.enter()
            try:
                await route.handler(gateway, http)
            finally:
                gateway.leave()
        except ModelnetError as error:
            if http.answering:
                raise
            log.info("%s %s: %s", http.scope["method"], http.scope["path"][:80], error.message)
            await http.fail(error)
        except Gone:
            log.debug("%s %s: the client hung up", http.scope["method"], http.scope["path"][:80])
        finally:
            http.release()


def _no(scope: Scope) -> str:
    return f"no {scope['method'][:20]} {scope['path'][:200]} here"
