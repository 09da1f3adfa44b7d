"""Two peers with nothing but a call protocol between them, and frames written by hand."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from modelnet_p2p.events import Event
from modelnet_p2p.exchange import Exchange, Role
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.calls.client import CallClient
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.node.transport.memory import MemoryWorld
from modelnet_p2p.tuning import TEST

PROTOCOL = "/test/call"
TUNING = replace(TEST, frame_body_timeout=1.0, stall_timeout=3.0, idle_stream=10.0)


def key_of(name: str) -> KeyPair:
    return KeyPair(hashlib.sha256(name.encode()).digest())


class Line:
    """One end of a call stream, driven step by step: what a peer could do that keeps no rules."""

    def __init__(self, stream: Stream, role: Role) -> None:
        self.stream = stream
        self.exchange = Exchange(role)

    async def say(self, event: Event) -> None:
        await self.stream.send([memoryview(part) for part in self.exchange.send(event)])

    async def hear(self) -> Event | None:
        while (event := self.exchange.next_event()) is None:
            count = await self.stream.receive_into(self.exchange.get_buffer())
            self.exchange.received(count)
            if not count:
                return self.exchange.next_event()
        return event


class Pair:
    """`bob` answers with a handler of the test's own; `carol` asks him, by her client or by hand."""

    def __init__(self, bob: Network, carol: Network, client: CallClient, budget: Budget) -> None:
        self.bob, self.carol, self.client, self.budget = bob, carol, client, budget

    async def line(self) -> Line:
        await self.carol.connect(self.bob.id, self.bob.addrs)
        return Line(await self.carol.open_stream(self.bob.id, PROTOCOL), Role.CALLER)

    def open(self, call: Any, timeout: float = 20.0, progress: Any = None) -> Any:  # Any: see CallClient.open
        return self.client.open(self.bob.id, self.bob.addrs, call, timeout, progress)

    async def ask(self, call: Any, timeout: float = 20.0, progress: Any = None) -> Any:
        return await self.client.unary(self.bob.id, self.bob.addrs, call, timeout, progress)


Handler = Callable[[Line], Awaitable[None]]


@pytest.fixture
def open_pair() -> Any:
    """`async with open_pair(handler) as pair:`; the handler gets bob's end of each stream."""

    @asynccontextmanager
    async def opened(handler: Handler) -> AsyncIterator[Pair]:
        world = MemoryWorld()
        async with (
            world.open(key_of("bob"), tuning=TUNING) as bob,
            world.open(key_of("carol"), tuning=TUNING, listen=False) as carol,
        ):

            async def answer(stream: Stream) -> None:
                await handler(Line(stream, Role.ANSWERER))

            bob.handle(PROTOCOL, answer)
            budget = Budget(carol.id)

            def loopback() -> Stream:
                raise AssertionError("carol does not call herself")

            yield Pair(bob, carol, CallClient(carol, PROTOCOL, TUNING, budget, loopback), budget)

    return opened


@pytest.fixture
def tuning() -> Any:
    return TUNING


@pytest.fixture
def line_of() -> Any:
    """A hand-driven end of a stream."""
    return Line
