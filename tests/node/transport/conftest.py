"""Both networks behind one door, so that one suite of tests holds both to the contract."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from subprocess import PIPE

import pytest

import echo_peer
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.node.transport.memory import MemoryWorld
from modelnet_p2p.tuning import TEST

Opener = Callable[..., AbstractAsyncContextManager[Network]]
CALM = replace(TEST, dial_timeout=5.0)  # a loaded machine must not turn a test of order into one of speed


def key_of(name: str) -> KeyPair:
    return KeyPair(hashlib.sha256(name.encode()).digest())


@pytest.fixture
def key() -> Callable[[str], KeyPair]:
    return key_of


OURS_ALONE = pytest.param("ours", marks=pytest.mark.live)
BESIDE_STOCK = [
    pytest.param(name, marks=pytest.mark.live) for name in ("ours dials stock", "stock dials ours")
]


@pytest.fixture(params=["memory", OURS_ALONE, *BESIDE_STOCK])
def open_peer(request: pytest.FixtureRequest) -> Opener:
    """`async with open_peer("alice") as alice:`; with listen=False a client. It is alice who dials."""
    if request.param == "memory":
        world = MemoryWorld()

        @asynccontextmanager
        async def open_memory(name: str, *, listen: bool = True) -> AsyncIterator[Network]:
            async with world.open(key_of(name), tuning=CALM, listen=listen) as network:
                yield network

        return open_memory

    from modelnet_p2p.node.transport.libp2p_network import OURS, open_libp2p

    stacks = {"alice": OURS, "bob": OURS}
    if request.param != "ours":
        from stock import STOCK  # importing libp2p takes a second

        stacks["bob" if request.param == "ours dials stock" else "alice"] = STOCK

    @asynccontextmanager
    async def open_real(name: str, *, listen: bool = True) -> AsyncIterator[Network]:
        where = ["/ip4/127.0.0.1/tcp/0"] if listen else []
        async with open_libp2p(
            key_of(name), listen=where, tuning=CALM, network="contract", stack=stacks[name]
        ) as network:
            yield network

    return open_real


@pytest.fixture
def max_streams(request: pytest.FixtureRequest) -> int:
    """How many streams alice may open to bob."""
    if request.node.callspec.params["open_peer"] == "stock dials ours":
        from stock import MAX_OUTBOUND

        return MAX_OUTBOUND
    return CALM.max_streams_per_peer


@pytest.fixture
def carol() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A peer in a process of its own that echoes, and its address."""
    command = [sys.executable, "-W", "ignore", echo_peer.__file__]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


async def read_exactly(stream: Stream, n: int) -> bytes:
    buffer = bytearray(n)
    view, got = memoryview(buffer), 0
    while got < n:
        more = await stream.receive_into(view[got:])
        assert more, f"the stream ended after {got} of {n} bytes"
        got += more
    return bytes(buffer)


async def read_to_end(stream: Stream, at_once: int = 65536) -> bytes:
    buffer, found = memoryview(bytearray(at_once)), bytearray()
    while n := await stream.receive_into(buffer):
        found += buffer[:n]
    return bytes(found)


@pytest.fixture
def exactly() -> Callable[[Stream, int], object]:
    return read_exactly


@pytest.fixture
def to_end() -> Callable[..., object]:
    return read_to_end
