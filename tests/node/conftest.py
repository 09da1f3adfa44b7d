"""A town of peers on the network in memory: everything above the transport is the real thing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node import assembly
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.memory import MemoryWorld
from modelnet_p2p.tuning import TEST, Tuning

NETWORK = "town"
# patient where a loaded machine may be slow, impatient where a test waits for a failure
TOWN = replace(TEST, dial_timeout=5.0, request_timeout=5.0, ping_timeout=1.0)


class Town:
    """Peers by name; the first one that comes is everybody's bootstrap."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.world = MemoryWorld()
        self.peers: dict[str, Peer] = {}
        self._stack = stack

    @staticmethod
    def key(name: str) -> KeyPair:
        return KeyPair(hashlib.sha256(name.encode()).digest())

    async def peer(
        self,
        name: str,
        *,
        listen: bool = True,
        tuning: Tuning = TOWN,
        alone: bool = False,
        host: str | None = None,
    ) -> Peer:
        key = self.key(name)
        opening = self.world.open(key, tuning=tuning, listen=listen, host=host)
        transport = await self._stack.enter_async_context(opening)
        peer = await self._stack.enter_async_context(Peer.open_on(transport, key, NETWORK, tuning))
        if self.peers and not alone:
            first = next(iter(self.peers.values()))
            assert (await peer.bootstrap(first.addrs)).reached == first.addrs
        self.peers[name] = peer
        return peer

    def kill(self, name: str) -> None:
        self.world.kill(self.peers[name].peer_id)

    def freeze(self, name: str) -> None:
        self.world.freeze(self.peers[name].peer_id)


@pytest.fixture
def open_town() -> Callable[[], AbstractAsyncContextManager[Town]]:
    """`async with open_town() as town: alice = await town.peer("alice")`"""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Town]:
        with single_error():
            async with AsyncExitStack() as stack:
                yield Town(stack)

    return opened


@pytest.fixture
def clock_is_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The clock of every peer that is opened from now on is this many seconds ahead."""

    def set_clock(seconds: float) -> None:
        monkeypatch.setattr(assembly, "_wall_us", lambda: time.time_ns() // 1000 + int(seconds * 1e6))

    return set_clock
