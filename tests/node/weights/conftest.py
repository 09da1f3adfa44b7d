"""Holders and pullers of one model on the network in memory, above which all is the real thing."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.contract import Handler
from modelnet_p2p.node.transport.memory import MemoryNetwork, MemoryWorld
from modelnet_p2p.node.weights.cache import Cache
from modelnet_p2p.node.weights.hashing import OnDisk, artifact_of
from modelnet_p2p.node.weights.holders import Holder
from modelnet_p2p.node.weights.puller import Progress, Puller
from modelnet_p2p.node.weights.server import WeightServer
from modelnet_p2p.tuning import TEST

PROTOCOL = "/weights"
CHUNK = 1000


class Square:
    """Holders by name, and one puller with a cache."""

    def __init__(self, stack: AsyncExitStack, path: Path, found: OnDisk) -> None:
        self.world = MemoryWorld()
        self.found = found
        self.cache = Cache(path / "cache")
        self.servers: dict[str, WeightServer] = {}
        self.told: list[Progress] = []
        self.watch: Callable[[Progress], None] = lambda progress: None
        self._stack = stack

    async def network(self, name: str, *, listen: bool = True) -> MemoryNetwork:
        key = KeyPair(hashlib.sha256(name.encode()).digest())
        return await self._stack.enter_async_context(self.world.open(key, listen=listen))

    async def holder(self, name: str, handler: Handler | None = None, *, busy: bool = False) -> Holder:
        """One that shares the model, or that does what `handler` does."""
        network = await self.network(name)
        server = self.servers[name] = WeightServer(TEST, lambda: busy)
        server.share(self.found)
        network.handle(PROTOCOL, handler or server.handle)
        return Holder(network.id, network.addrs)

    async def puller(self, name: str = "carol") -> Puller:
        return Puller(await self.network(name, listen=False), PROTOCOL, self.cache)

    def tell(self, progress: Progress) -> None:
        self.told.append(progress)
        self.watch(progress)

    def is_here(self) -> bool:
        """Whether every byte of the model is in the cache."""
        whole = self.cache.whole(self.found.root)
        return whole is not None and all(
            whole.places[name].read_bytes() == place.read_bytes() for name, place in self.found.places.items()
        )


def make_model(path: Path) -> OnDisk:
    """A directory of some 200 pieces."""
    (path / "more").mkdir(parents=True)
    weights = np.random.default_rng(7).random(24_000, np.float32)
    (path / "model.safetensors").write_bytes(save({"a": weights, "b": weights[:50]}))
    (path / "config.json").write_text('{"layers": 2}')
    (path / "vocab.txt").write_text("")
    # a copy: safetensors reads behind the end of an array that runs backwards
    (path / "more" / "extra.safetensors").write_bytes(save({"c": weights[::-1].copy()}))
    return artifact_of(path, chunk_bytes=CHUNK)


OpenSquare = Callable[[], AbstractAsyncContextManager[Square]]


@pytest.fixture
def open_square(tmp_path: Path) -> OpenSquare:
    """`async with open_square() as square: alice = await square.holder("alice")`"""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Square]:
        with single_error():
            async with AsyncExitStack() as stack:
                yield Square(stack, tmp_path, make_model(tmp_path / "model"))

    return opened
