"""The gateway's application: the one place where routes are put together, and what surrounds each of them.

A part that needs more than routes (a session manager with tasks of its own) is entered in `open_routes`,
and lives as long as the gateway.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from modelnet_p2p.errors import Code, ModelnetError
from modelnet_p2p.node.control.table import dispatch
from modelnet_p2p.node.gateway.calling import Gateway
from modelnet_p2p.node.gateway.chat import chat_completions, completions
from modelnet_p2p.node.gateway.embeddings import embeddings
from modelnet_p2p.node.gateway.errors import KINDS, NO_ROUTE, WRONG_METHOD, Kind, plain_object, to_bytes
from modelnet_p2p.node.gateway.gate import Gate
from modelnet_p2p.node.gateway.health import healthz, metrics, readyz
from modelnet_p2p.node.gateway.http import Gone, Http
from modelnet_p2p.node.gateway.invoke import invoke
from modelnet_p2p.node.gateway.models import list_models, show_model
from modelnet_p2p.node.gateway.responses import responses
from modelnet_p2p.node.mcp.door import open_door

log = logging.getLogger(__name__)

Handler = Callable[[Gateway, Http], Awaitable[None]]


@asynccontextmanager
async def open_routes(gateway: Gateway) -> AsyncIterator[list[BaseRoute]]:
    """All that the gateway answers, as long as the block lasts."""

    def at(path: str, handler: Handler, *methods: str, counted: bool = True) -> Route:
        return Route(path, Endpoint(gateway, handler, counted=counted), methods=methods)

    async with open_door(partial(dispatch, gateway.peer)) as door:
        yield [
            at("/v1/chat/completions", chat_completions, "POST"),
            at("/v1/completions", completions, "POST"),
            at("/v1/embeddings", embeddings, "POST"),
            at("/v1/responses", responses, "POST"),
            at("/v1/models", list_models, "GET"),
            at("/v1/models/{model:path}", show_model, "GET"),
            at("/api/v1/invoke/{model:path}", invoke, "POST"),
            at("/mcp", door.answer, "GET", "POST", "DELETE"),
            at("/healthz", healthz, "GET", counted=False),
            at("/readyz", readyz, "GET", counted=False),
            at("/metrics", metrics, "GET", counted=False),
        ]


@asynccontextmanager
async def open_app(gateway: Gateway) -> AsyncIterator[ASGIApp]:
    """The whole application."""
    async with open_routes(gateway) as routes:
        app = Starlette(routes=routes, exception_handlers={HTTPException: _no_answer, Exception: _bug})
        app.router.redirect_slashes = False  # a POST that is redirected is lost
        yield Gate(app, gateway.settings)


class Endpoint:
    """What surrounds every handler: the bound on requests, and errors as objects."""

    def __init__(self, gateway: Gateway, handler: Handler, *, counted: bool = True) -> None:
        self._gateway = gateway
        self._handler = handler
        self._counted = counted  # among those that the gateway answers at once; probes are not

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        http = Http(scope, receive, send, gateway.room)
        try:
            if not self._counted:
                await self._handler(gateway, http)
                return
            gateway.enter()
            try:
                await self._handler(gateway, http)
            finally:
                gateway.leave()
        except ModelnetError as error:
            if http.answering:
                raise
            log.info("%s %s: %s", scope["method"], scope["path"][:80], error.message)
            await http.fail(error)
        except Gone:
            log.debug("%s %s: the client hung up", scope["method"], scope["path"][:80])
        finally:
            http.release()


def _respond(kind: Kind, words: str, status: int | None = None) -> Response:
    return Response(to_bytes(plain_object(kind, words)), status or kind.status, media_type="application/json")


async def _no_answer(request: Request, error: Exception) -> Response:
    """What no route takes."""
    assert isinstance(error, HTTPException)
    kind = WRONG_METHOD if error.status_code == 405 else NO_ROUTE
    response = _respond(kind, f"no {request.method} {request.url.path[:200]} here", error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _bug(request: Request, error: Exception) -> Response:
    """A request that met a bug of ours: it is logged with its traceback, and the peer goes on."""
    return _respond(KINDS[Code.INTERNAL], "a fault inside of the gateway: its traceback is in the peer's log")
