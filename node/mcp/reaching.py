"""Which peer answers an agent: the one that runs on this home, or a temporary client as long as none does.

An agent keeps its tools for days, while peers come and go. So each call looks anew: the running peer is asked
where there is one, and else a temporary one, which is kept for the next call. Where nobody can be asked, that
call fails with what to do, and the tools stay.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.control.asking import Conversation, open_control
from modelnet_p2p.node.control.table import Emit, Request, dispatch
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.temporary import bootstraps, open_temporary
from modelnet_p2p.payload import Value


class Starting(Protocol):
    """The part of trio.TaskStatus that is needed here; the stubs of trio-typing do not know that name."""

    def started(self, value: Peer, /) -> None: ...


@asynccontextmanager
async def reach(settings: Settings, notice: Callable[[str], None]) -> AsyncIterator[Reach]:
    """A way to whichever peer can be asked, as long as the block lasts."""
    with single_error():
        async with trio.open_nursery() as nursery:
            yield Reach(settings, nursery, notice)
            nursery.cancel_scope.cancel()


@dataclass(slots=True)
class _Temporary:
    """A client peer of this process, and how many calls it is answering."""

    peer: Peer
    scope: trio.CancelScope
    calls: int = 0


class Reach:
    """Made by `reach`; `ask` may be called by many tasks at once."""

    def __init__(self, settings: Settings, nursery: trio.Nursery, notice: Callable[[str], None]) -> None:
        self._settings = settings
        self._nursery = nursery
        self._notice = notice
        self._temporary: _Temporary | None = None
        self._opening = trio.Lock()

    async def ask(self, method: str, request: Request, emit: Emit) -> Value:
        """Do what the control table says for `method`, on the peer that is there now."""
        async with AsyncExitStack() as stack:
            if (running := await self._running(stack)) is not None:
                self._retire()
                network = self._settings.network if self._settings.network_asked else None
                return await running.call(method, replace(request, network=network), emit)
        with single_error():
            return await self._ask_temporary(method, request, emit)

    async def _running(self, stack: AsyncExitStack) -> Conversation | None:
        try:
            return await stack.enter_async_context(open_control(self._settings.home))
        except LocalError as error:
            if error.code is not Code.NOT_RUNNING:
                raise
            return None

    async def _ask_temporary(self, method: str, request: Request, emit: Emit) -> Value:
        temporary = await self._open()
        temporary.calls += 1
        try:
            return await dispatch(temporary.peer, method, request, emit)
        except LocalError as error:
            if error.code is Code.UNREACHABLE and self._temporary is temporary:
                self._retire()  # whom it knew is gone: the next call looks who is there by then
            raise
        finally:
            temporary.calls -= 1
            self._let_go(temporary)

    async def _open(self) -> _Temporary:
        async with self._opening:
            if self._temporary is None:
                bootstrap, scope = bootstraps(self._settings), trio.CancelScope()
                home = self._settings.home.path
                self._notice(f"no peer is running on {home}: asking as a temporary client")
                peer = await self._nursery.start(self._keep, bootstrap, scope)
                self._temporary = _Temporary(peer, scope)
            return self._temporary

    async def _keep(
        self, bootstrap: tuple[str, ...], scope: trio.CancelScope, *, task_status: Starting
    ) -> None:
        with scope, single_error():
            async with open_temporary(self._settings, bootstrap) as peer:
                task_status.started(peer)
                await trio.sleep_forever()

    def _retire(self) -> None:
        """Give the temporary peer, if any, no more calls; it ends with its last one."""
        if (temporary := self._temporary) is not None:
            self._temporary = None
            self._let_go(temporary)

    def _let_go(self, temporary: _Temporary) -> None:
        if temporary is not self._temporary and not temporary.calls:
            temporary.scope.cancel()
