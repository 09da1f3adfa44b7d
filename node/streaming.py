"""The items of a streamed answer, for `async for`.

The call itself runs in a task of the peer: cancel scopes may not live across the `yield` of an
async generator, and a loop that is left early would not close one in time. This object can be dropped
at any moment; the call is then cancelled, here and on the far side.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from modelnet_p2p.errors import ModelnetError
from modelnet_p2p.node.calls.router import Outcome, Running
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
            except trio.BrokenResourceError:
                pass  # nobody reads any more


class Items:
    """An async iterator over items; `outcome` tells how the call went once it has ended."""

    def __init__(self, nursery: trio.Nursery, opening: Opening) -> None:
        self._nursery = nursery
        self._pump = _Pump(opening)
        self._begun = False

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Value:
        """The next item; raises NotFound, RemoteError or LocalError when the call fails."""
        if not self._begun:
            self._begun = True
            self._nursery.start_soon(self._pump.run)
        try:
            return await self._pump.receive.receive()
        except trio.EndOfChannel:
            if self._pump.error is not None:
                raise self._pump.error from None
            raise StopAsyncIteration from None

    @property
    def outcome(self) -> Outcome | None:
        return self._pump.outcome

    def close(self) -> None:
        """Cancel the call; harmless when it has ended."""
        self._pump.scope.cancel()

    async def aclose(self) -> None:
        self.close()

    def __del__(self) -> None:
        self._pump.scope.cancel()
