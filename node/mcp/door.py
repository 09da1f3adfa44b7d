"""The tools over HTTP: `/mcp` of the gateway, which has looked at host, origin and key before.

The SDK costs most of a second and some 30 MB, and most gateways are never asked for tools: it is brought at
the first request, in a thread, while the peer goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from modelnet_p2p.node.mcp.asking import Ask
from modelnet_p2p.node.mcp.sdk import check_sdk
from modelnet_p2p.node.mcp.tools import DEFAULT_SECONDS
from modelnet_p2p.node.single_error import single_error

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from starlette.types import ASGIApp

    from modelnet_p2p.node.gateway.calling import Gateway
    from modelnet_p2p.node.gateway.http import Http

MAX_BODY_BYTES = 16 << 20  # of one message, as of every other request with JSON
MAX_SESSIONS = 256  # agents at once, each with a task and some streams
IDLE_SECONDS = 1800.0  # for which an agent that asks nothing is remembered; then it begins anew


class Starting(Protocol):
    """The part of trio.TaskStatus that is needed here; the stubs of trio-typing do not know that name."""

    def started(self, value: None, /) -> None: ...


@asynccontextmanager
async def open_door(ask: Ask) -> AsyncIterator[Door]:
    """What answers `/mcp` while the block lasts."""
    with single_error():
        async with trio.open_nursery() as nursery:
            yield Door(ask, nursery)
            nursery.cancel_scope.cancel()


class Door:
    """Made by `open_door`."""

    def __init__(self, ask: Ask, nursery: trio.Nursery) -> None:
        self._ask = ask
        self._nursery = nursery
        self._app: ASGIApp | None = None
        self._opening = trio.Lock()

    async def answer(self, gateway: Gateway, http: Http) -> None:
        """Any request to `/mcp`; raises LocalError (bad-state) where the SDK is not installed."""
        async with self._opening:
            if self._app is None:
                manager = await trio.to_thread.run_sync(self._manager)
                await self._nursery.start(self._keep, manager)
                self._app = manager.asgi_app
        await http.pass_to(self._app)

    def _manager(self) -> StreamableHTTPSessionManager:
        check_sdk()
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        from modelnet_p2p.node.mcp.server import build_server

        return StreamableHTTPSessionManager(
            build_server(self._ask, DEFAULT_SECONDS),
            session_idle_timeout=IDLE_SECONDS,
            max_request_body_size=MAX_BODY_BYTES,
            max_sessions=MAX_SESSIONS,
        )

    @staticmethod
    async def _keep(manager: StreamableHTTPSessionManager, *, task_status: Starting) -> None:
        async with manager.run():
            task_status.started(None)
            await trio.sleep_forever()
