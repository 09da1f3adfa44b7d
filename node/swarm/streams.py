"""The items of a streamed answer, for the loops of a swarm's two faces: `for` and `async for`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from modelnet_p2p.node.calls.outcome import Outcome
from modelnet_p2p.node.streaming import Items
from modelnet_p2p.node.swarm.thread import PeerThread
from modelnet_p2p.payload import Value

T = TypeVar("T")


class _Answer:
    """One answer that comes in items from the peer's thread."""

    def __init__(self, swarm: object, thread: PeerThread, items: Items) -> None:
        self._swarm = swarm  # one that is dropped would close
        self._thread = thread
        self._items = items

    @property
    def outcome(self) -> Outcome | None:
        return self._items.outcome

    def close(self) -> None:
        """Cancel the call; harmless when it has ended."""
        self._thread.soon(self._items.close)


class Stream(_Answer):
    """An iterator over the items of one answer; `outcome` tells how it went once it has ended.

    One that is left, dropped, or closed is cancelled, here and on the far side. It keeps its swarm open.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Value:
        """The next item; raises NotFound, RemoteError or LocalError when the call fails."""
        try:
            got = self._thread.run(partial(next_item, self._items))
        except BaseException:
            self.close()
            raise
        if got is None:
            raise StopIteration
        return got[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(_Answer):
    """An async iterator over the items of one answer; `outcome` tells how it went once it has ended.

    One that is left, dropped, or closed is cancelled, here and on the far side; so is one whose reader is
    cancelled while it waits. It keeps its swarm open.
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Value:
        """The next item; raises NotFound, RemoteError or LocalError when the call fails."""
        try:
            got = await self._thread.run_async(partial(next_item, self._items))
        except BaseException:
            self.close()
            raise
        if got is None:
            raise StopAsyncIteration
        return got[0]

    async def aclose(self) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def next_item(items: AsyncIterator[T]) -> tuple[T] | None:
    """The next one, None after the last: an exception that ends loops may not cross threads."""
    try:
        return (await anext(items),)
    except StopAsyncIteration:
        return None
