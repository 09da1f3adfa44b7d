"""Shown only by thousands or by seconds: cancelled work, streams without end, frozen peers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

import streams_by_thousands
from modelnet_p2p.errors import RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport.contract import ConnectionLost, Stream
from modelnet_p2p.node.transport.libp2p_network import Libp2pNetwork, open_libp2p
from modelnet_p2p.tuning import TEST

pytestmark = pytest.mark.live
LOCAL = "/ip4/127.0.0.1/tcp/0"
CALM = replace(TEST, dial_timeout=5.0)
ROW = bytes(range(251)) * 1200  # 251 is prime: a lost or repeated piece never looks like the right one
Keys = Callable[[str], KeyPair]
Exactly = Callable[[Stream, int], Awaitable[bytes]]


async def count_up(stream: Stream) -> None:
    """Send the row again and again, in pieces small and large, and not too fast for a reader to wait."""
    rng, at = random.Random(6), 0
    while True:
        size = rng.choice([1, 10, 300, 300, 300, 300, 5000, 30_000])
        await stream.send([memoryview(ROW)[at : at + size]])
        at = (at + size) % 251
        for _ in range(rng.randrange(30)):
            await trio.lowlevel.checkpoint()


async def check(stream: Stream) -> None:
    """Read the row again and again; end with how much of it came, or with where it was wrong."""
    buffer, got = memoryview(bytearray(70_000)), 0
    while n := await stream.receive_into(buffer):
        if buffer[:n] != memoryview(ROW)[got % 251 : got % 251 + n]:
            await stream.send([b"wrong at %d" % got])
            return
        got += n
    await stream.send([b"%d" % got])


@asynccontextmanager
async def open_pair(key: Keys) -> AsyncIterator[tuple[Libp2pNetwork, Libp2pNetwork]]:
    async with (
        open_libp2p(key("bob"), listen=[LOCAL], tuning=CALM, network="test") as bob,
        open_libp2p(key("alice"), listen=[], tuning=CALM, network="test") as alice,
    ):
        for name, handler in (("/count", count_up), ("/check", check)):
            bob.handle(name, handler)
        await alice.connect(bob.id, bob.addrs)
        await alice.protocols(bob.id)
        yield bob, alice


async def soon(turns: int, scope: trio.CancelScope) -> None:
    """Cancel after so many turns of the scheduler: sooner or later at every point where somebody waits."""
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_ten_thousand_cancelled_reads_lose_nothing(key: Keys) -> None:
    rng = random.Random(7)
    async with open_pair(key) as (bob, alice), await alice.open_stream(bob.id, "/count") as stream:
        got = cancelled = tries = 0
        buffer = memoryview(bytearray(100_000))
        while cancelled < 10_000:
            room = buffer[: rng.choice([1, 100, 100_000, 100_000])]
            n, tries = 0, tries + 1
            assert tries < 200_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(soon, rng.randrange(4), nursery.cancel_scope)
                n = await stream.receive_into(room)
                nursery.cancel_scope.cancel()
            cancelled += not n
            assert room[:n] == memoryview(ROW)[got % 251 : got % 251 + n]
            got += n
        print(f"{cancelled} of {tries} reads cancelled, {got} bytes in between")
        assert got > 1_000_000


async def test_ten_thousand_cancelled_writes_harm_no_other_stream(key: Keys) -> None:
    rng = random.Random(8)
    async with open_pair(key) as (bob, alice), await alice.open_stream(bob.id, "/check") as steady:
        sent = cancelled = tries = 0
        while cancelled < 10_000:
            victim = await alice.open_stream(bob.id, "/check")
            done, tries = False, tries + 1
            assert tries < 200_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(soon, rng.randrange(3), nursery.cancel_scope)
                await victim.send([memoryview(ROW)[: rng.choice([20_000, 270_000, 300_000, 300_000])]])
                done = True
                nursery.cancel_scope.cancel()
            if not done:
                cancelled += 1
                with pytest.raises(trio.ClosedResourceError):
                    await victim.send([b"more"])
            await victim.reset()
            size = rng.choice([1, 1000, 70_000]) if cancelled % 10 == 0 else 1
            await steady.send([memoryview(ROW)[sent % 251 : sent % 251 + size]])
            sent += size
        print(f"{cancelled} of {tries} writes cancelled")
        await steady.finish()
        buffer = memoryview(bytearray(100))
        assert bytes(buffer[: await steady.receive_into(buffer)]) == b"%d" % sent
        [connection] = bob._connections[alice.id]
        session = connection.link.session
        with trio.fail_after(5):
            while (session.inbound, session.held) != (0, 0):
                await trio.sleep(0.01)


@pytest.mark.slow
async def test_a_hundred_thousand_streams_leave_nothing_behind() -> None:
    """In a process of their own: 20 bytes a stream are less than any object that could be kept."""
    command = [sys.executable, "-W", "ignore", streams_by_thousands.__file__]
    with trio.fail_after(600):  # some 25 s of CPU time
        done = await trio.run_process(command, capture_stdout=True)
    more = json.loads(done.stdout)
    print(f"{more['bytes'] >> 10} KiB, {more['objects']} objects, {more['tasks']} tasks more")
    assert more["bytes"] <= 2 << 20
    assert more["objects"] <= 200
    assert more["tasks"] == 0


# --- frozen ----------------------------------------------------------------------------------------


@asynccontextmanager
async def open_to(carol: tuple[subprocess.Popen[str], str], key: Keys) -> AsyncIterator[Stream]:
    peer = PeerId.parse(carol[1].rpartition("/")[2])
    async with open_libp2p(key("alice"), listen=[], tuning=CALM, network="test") as alice:
        await alice.connect(peer, [carol[1]])
        await alice.protocols(peer)
        async with await alice.open_stream(peer, "/echo") as stream:
            yield stream


async def test_three_seconds_of_freeze_harm_nothing(
    carol: tuple[subprocess.Popen[str], str], key: Keys, exactly: Exactly
) -> None:
    async with open_to(carol, key) as stream, trio.open_nursery() as nursery:
        sent = ROW * 20  # six MB: it is frozen in the middle of them
        nursery.start_soon(stream.send, [sent])
        first = await exactly(stream, 100_000)
        os.kill(carol[0].pid, signal.SIGSTOP)
        await trio.sleep(3)
        os.kill(carol[0].pid, signal.SIGCONT)
        with trio.fail_after(5):
            assert first + await exactly(stream, len(sent) - len(first)) == sent


@pytest.mark.slow
async def test_a_frozen_peer_is_noticed_within_fifteen_seconds(
    carol: tuple[subprocess.Popen[str], str], key: Keys, exactly: Exactly
) -> None:
    async with open_to(carol, key) as stream:
        await stream.send([b"alive"])
        assert await exactly(stream, 5) == b"alive"
        os.kill(carol[0].pid, signal.SIGSTOP)
        began = trio.current_time()
        with trio.fail_after(15), pytest.raises(ConnectionLost):
            await exactly(stream, 1)
        assert trio.current_time() - began > 8  # and not at the first silence
        with pytest.raises(RemoteError):
            await stream.send([b"gone"])
