"""Peers that share no code with us: a stock py-libp2p host and a js-libp2p node, each in its own process.

Either side dials, and either side opens streams: ten megabytes with their digest each way, ends that leave
the other direction open, resets in the middle, a thousand streams at once, and a stream that is used again
after our keepalive has come round.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport.addresses import split_p2p
from modelnet_p2p.node.transport.contract import Network, Stream, StreamReset
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.node.transport.wire.vitality import IDLE
from modelnet_p2p.tuning import LAN

pytestmark = [pytest.mark.live]
HERE = Path(__file__).parent
SUPPORT = HERE.parent / "support"
ECHO, DIGEST, SOURCE, GIVES_UP, LISTENS, CALLS_BACK = (
    f"/wire/{name}" for name in ("echo", "digest", "source", "gives-up", "listens", "calls-back")
)
SIZE = 10_000_000  # bytes, each way
GIVE_UP_AT = 100_000
MANY = 1000
MANY_OF_STOCK_PY = 250  # stock yamux waits forever to open its 257th
ROOMY = replace(LAN, max_streams_per_peer=MANY + 100)
STILL = IDLE + 1.5  # seconds: our keepalive has asked once
Lines = trio.MemoryReceiveChannel[dict[str, Any]]  # JSON objects: their values are whatever JSON holds


def pattern(size: int) -> bytes:
    """Of a prime period: two frames in the wrong order would show."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


class Stranger:
    """The other implementation: how its program is started, and what it is known to do wrong."""

    def __init__(self, program: list[str], env: dict[str, str], *, opens: int, blurs_resets: bool) -> None:
        self.opens = opens  # streams at once
        self.blurs_resets = blurs_resets  # a reset that comes while it reads is an end to it
        self._program = program
        self._env = env

    @asynccontextmanager
    async def run(self, *arguments: str) -> AsyncIterator[Lines]:
        """What it says, line by line; it is killed at the end."""
        send, receive = trio.open_memory_channel[dict[str, Any]](100)

        async def listen(process: trio.Process) -> None:
            assert process.stdout is not None
            rest = b""
            async with send:
                async for data in process.stdout:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        await send.send(json.loads(line))

        command, pipe = [*self._program, *arguments], subprocess.PIPE
        process = await trio.lowlevel.open_process(
            command, cwd=HERE, stdin=pipe, stdout=pipe, env={**os.environ, **self._env}
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, process)
            try:
                yield receive
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
        for end in (process.stdin, process.stdout):
            if end is not None:
                await end.aclose()


@pytest.fixture(params=["py", pytest.param("js", marks=pytest.mark.js)])
def stranger(request: pytest.FixtureRequest) -> Stranger:
    if request.param == "py":
        host, path = SUPPORT / "stock" / "host.py", {"PYTHONWARNINGS": "ignore"}
        return Stranger([sys.executable, str(host)], path, opens=MANY_OF_STOCK_PY, blurs_resets=True)
    node = request.getfixturevalue("node")
    return Stranger([node, "stranger.mjs"], {}, opens=MANY, blurs_resets=False)


@asynccontextmanager
async def open_ours() -> AsyncIterator[Network]:
    where = ["/ip4/127.0.0.1/tcp/0"]
    async with open_libp2p(KeyPair(b"o" * 32), listen=where, tuning=ROOMY, network="public") as network:
        yield network


@asynccontextmanager
async def dialled(ours: Network, stranger: Stranger) -> AsyncIterator[tuple[PeerId, Lines]]:
    """The stranger listens and we have dialled it."""
    async with stranger.run("listen") as lines:
        peer, addr = split_p2p((await said(lines, "listening"))["addr"])
        assert peer is not None
        await ours.connect(peer, [addr])
        yield peer, lines


async def said(lines: Lines, event: str) -> dict[str, Any]:
    """The next thing that it says, which must be this."""
    line = await lines.receive()
    assert line.pop("event") == event, line
    return line


# --- what we serve -----------------------------------------------------------------------------------


async def read_exactly(stream: Stream, size: int) -> bytes:
    buffer, at = bytearray(size), 0
    while at < size:
        n = await stream.receive_into(memoryview(buffer)[at:])
        assert n, f"it ended after {at} of {size} bytes"
        at += n
    return bytes(buffer)


async def pieces(stream: Stream) -> tuple[bytes, str]:
    """All that comes, and how it ended."""
    buffer, found = memoryview(bytearray(65536)), bytearray()
    try:
        while n := await stream.receive_into(buffer):
            found += buffer[:n]
    except StreamReset:
        return bytes(found), "reset"
    return bytes(found), "end"


class Serving:
    """What `host.py` and `stranger.mjs` serve, and what happened to it."""

    def __init__(self, network: Network) -> None:
        self.after_the_end: list[tuple[bytes, str]] = []
        self.fates: list[tuple[int, str]] = []
        self.most_at_once = self._open = 0
        for protocol, handler in (
            (ECHO, self.echo),
            (DIGEST, self.digest),
            (SOURCE, self.source),
            (GIVES_UP, self.gives_up),
            (LISTENS, self.listens),
        ):
            network.handle(protocol, handler)

    async def echo(self, stream: Stream) -> None:
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        buffer = memoryview(bytearray(4096))
        while n := await stream.receive_into(buffer):
            await stream.send([buffer[:n]])
        self._open -= 1

    async def digest(self, stream: Stream) -> None:
        data, _ = await pieces(stream)
        await stream.send([hashlib.sha256(data).hexdigest().encode()])

    async def source(self, stream: Stream) -> None:
        await stream.send([pattern(int.from_bytes(await read_exactly(stream, 8), "big"))])
        await stream.finish()
        self.after_the_end.append(await pieces(stream))

    async def gives_up(self, stream: Stream) -> None:
        await read_exactly(stream, GIVE_UP_AT)
        await stream.reset()

    async def listens(self, stream: Stream) -> None:
        await stream.send([b"!"])
        data, how = await pieces(stream)
        self.fates.append((len(data), how))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.01)


# --- the tests ---------------------------------------------------------------------------------------


async def test_a_stranger_dials_us_and_finds_all_as_the_wire_has_it(stranger: Stranger) -> None:
    with trio.fail_after(60):
        async with open_ours() as ours:
            serving = Serving(ours)
            async with stranger.run("dial", ours.addrs[0], str(stranger.opens)) as lines:
                await said(lines, "connected")
                assert await said(lines, "upload") == {"equal": True, "how": "end"}
                assert await said(lines, "download") == {"equal": True, "how": "end"}
                assert await said(lines, "is-reset") == {"how": "reset"}
                await said(lines, "resets")
                assert await said(lines, "many") == {"open": stranger.opens, "good": stranger.opens}
                await said(lines, "done")
                assert serving.most_at_once == stranger.opens
                assert serving.after_the_end == [(b"thanks", "end")]
                await until(lambda: bool(serving.fates))
                assert serving.fates[0][1] == "reset"
                [peer] = ours.connected()
                async with await ours.open_stream(peer, ECHO) as back:  # on its connection
                    await back.send([b"and back"])
                    assert await read_exactly(back, 8) == b"and back"
            await until(lambda: not ours.connected())


async def test_we_dial_a_stranger_and_find_all_as_the_wire_has_it(stranger: Stranger) -> None:
    with trio.fail_after(60):
        async with open_ours() as ours:
            Serving(ours)
            async with dialled(ours, stranger) as (peer, lines):
                await upload(ours, peer)
                await download(ours, peer, lines)
                await resets(ours, peer, lines, stranger)
                await many(ours, peer)
                async with await ours.open_stream(peer, CALLS_BACK) as stream:
                    assert await read_exactly(stream, 8) == b"it is me"
            await until(lambda: not ours.connected())


async def upload(ours: Network, peer: PeerId) -> None:
    data = pattern(SIZE)
    async with await ours.open_stream(peer, DIGEST) as stream:
        await stream.send([data])
        await stream.finish()
        assert await pieces(stream) == (hashlib.sha256(data).hexdigest().encode(), "end")


async def download(ours: Network, peer: PeerId, lines: Lines) -> None:
    async with await ours.open_stream(peer, SOURCE) as stream:
        await stream.send([SIZE.to_bytes(8, "big")])
        assert await pieces(stream) == (pattern(SIZE), "end")
        await stream.send([b"thanks"])
        await stream.finish()
        assert await said(lines, "after-the-end") == {"bytes": 6, "how": "end"}


async def resets(ours: Network, peer: PeerId, lines: Lines, stranger: Stranger) -> None:
    doomed, broken = await ours.open_stream(peer, GIVES_UP), trio.Event()
    doomed.on_broken(broken.set)
    with pytest.raises(StreamReset):
        await doomed.send([pattern(SIZE)])
    assert broken.is_set()
    await doomed.reset()

    regretted = await ours.open_stream(peer, LISTENS)
    await regretted.send([pattern(GIVE_UP_AT)])
    await read_exactly(regretted, 1)  # stock py forgets a stream that is reset before its handler runs
    await regretted.reset()
    how = (await said(lines, "fate"))["how"]
    assert how == "reset" or (stranger.blurs_resets and how == "end")


async def many(ours: Network, peer: PeerId) -> None:
    streams = [await ours.open_stream(peer, ECHO) for _ in range(MANY)]
    for i, stream in enumerate(streams):
        await stream.send([b"%06d" % i])
    for i, stream in enumerate(streams):
        assert await read_exactly(stream, 6) == b"%06d" % i
    for stream in streams:
        await stream.finish()
    for stream in streams:
        assert await pieces(stream) == (b"", "end")


async def test_a_stream_is_used_again_after_our_keepalive_came_round(stranger: Stranger) -> None:
    """Both dial directions at once, each with a network of its own."""

    async def it_dialled() -> None:
        async with open_ours() as ours:
            Serving(ours)
            async with stranger.run("idle", ours.addrs[0], str(STILL)) as lines:
                await said(lines, "connected")
                assert await said(lines, "used") == {"equal": True}

    async def we_dialled() -> None:
        async with (
            open_ours() as ours,
            dialled(ours, stranger) as (peer, _),
            await ours.open_stream(peer, ECHO) as stream,
        ):
            await stream.send([b"before"])
            assert await read_exactly(stream, 6) == b"before"
            await trio.sleep(STILL)
            await stream.send([b"after!"])
            assert await read_exactly(stream, 6) == b"after!"

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it_dialled)
            nursery.start_soon(we_dialled)
