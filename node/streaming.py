"""The items of a streamed answer, for `async for`.

The call itself runs in a task of the peer: cancel scopes may not live across the `yield` of an
async generator, and a loop that is left early would not close one in time. This object can be dropped
at any moment; the call is then cancelled, here and on the far side.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.calls.outcome import Outcome, Running
from modelnet_p2p.payload import Value

Opening = Callable[[], AbstractAsyncContextManager[Running]]


class _Pump:
    """The task's side; holds no reference to `Items`, so that dropping those is noticed."""

    def __init__(self, opening: Opening) -> None:
        # no buffer: the model goes no faster than the loop that reads
        self.send, self.receive = trio.open_memory_channel[Value](0)
        self.scope = trio.CancelScope()
        self.error: ModelnetError | None = None
        self.outcome: Outcome | None = None
        self.left = False  # nobody wants more
        self._opening = opening

    async def run(self) -> None:
        with self.send, self.scope:
            try:
                async with self._opening() as running:
                    async for item in running:
                        await self.send.send(item)
                    self.outcome = running.outcome
            except ModelnetError as error:
                self.error = error

    def leave(self) -> None:
        self.left = True
        self.scope.cancel()


class Items:
    """An async iterator over items; `outcome` tells how the call went once it has ended."""

    def __init__(self, nursery: trio.Nursery, opening: Opening) -> None:
        self._nursery = nursery
        self._pump = _Pump(opening)
        self._token: trio.lowlevel.TrioToken | None = None  # once the call has begun

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Value:
        """The next item; raises NotFound, RemoteError or LocalError when the call fails."""
        pump = self._pump
        if self._token is None:
            self._begin()
        try:
            return await pump.receive.receive()
        except trio.EndOfChannel:
            if pump.error is not None:
                raise pump.error from None
            if pump.outcome is None and not pump.left:  # an end that nobody meant is not the end
                raise _closed() from None
            raise StopAsyncIteration from None

    def _begin(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        try:
            self._nursery.start_soon(self._pump.run)
        except RuntimeError:  # the nursery is closed
            self._pump.send.close()
            raise _closed() from None

    @property
    def outcome(self) -> Outcome | None:
        return self._pump.outcome

    def close(self) -> None:
        """Cancel the call; harmless when it has ended."""
        self._pump.leave()

    async def aclose(self) -> None:
        self.close()

    def __del__(self) -> None:
        # the collector may run anywhere, in another thread or inside of trio itself: only this is safe there
        if self._token is not None:
            try:
                self._token.run_sync_soon(self._pump.leave)
            except trio.RunFinishedError:
                pass  # and with it the call


def _closed() -> LocalError:
    return LocalError(Code.NOT_RUNNING, "the peer was closed before the answer was complete")
