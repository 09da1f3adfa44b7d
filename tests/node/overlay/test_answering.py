"""What others may do to the answering side of the DHT: flood it, stand still in it, stay for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.errors import RemoteError
from modelnet_p2p.kad import Framer, Kind, Message, frame
from modelnet_p2p.names import protocol
from modelnet_p2p.node.overlay.answering import MAX_STREAMS_PER_PEER
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.tuning import TEST

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
CALM = replace(TEST, idle_stream=10.0, requests_per_second=20.0, requests_burst=50)


@asynccontextmanager
async def attack(town: Any) -> AsyncIterator[tuple[Any, Network]]:
    """A peer, and mallory's bare network, connected with it."""
    alice = await town.peer("alice", tuning=CALM)
    async with town.world.open(town.key("mallory"), listen=False) as mallory:
        await mallory.connect(alice.peer_id, alice.addrs)
        yield alice, mallory


async def kad_stream(mallory: Network, alice: Any) -> Stream:
    return await mallory.open_stream(alice.peer_id, protocol("town", "kad"))


async def replies(stream: Stream, count: int) -> list[Message]:
    framer, buffer, found = Framer(), memoryview(bytearray(4096)), list[Message]()
    while len(found) < count and (n := await stream.receive_into(buffer)):
        found += framer.feed(bytes(buffer[:n]))
    return found


async def ended(stream: Stream) -> bool:
    """Whether the far side has given up on it."""
    try:
        return await stream.receive_into(memoryview(bytearray(1))) == 0
    except RemoteError:
        return True


async def test_who_asks_too_fast_is_slowed_down_and_loses_nothing(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        bob = await town.peer("bob", tuning=CALM)
        async with attack(town) as (alice, mallory):
            await flood(alice, mallory, bob)


async def flood(alice: Any, mallory: Network, bob: Any) -> None:
    streams = [await kad_stream(mallory, alice) for _ in range(2)]
    began = trio.current_time()
    for stream in streams:
        await stream.send([frame(Message(Kind.PING)) * 100])
    for stream in streams:
        assert not any(reply.refused for reply in await replies(stream, 100))  # a stock peer is never refused
    assert 7 <= trio.current_time() - began <= 8  # 200 requests, 50 at once and then 20 a second
    began = trio.current_time()
    await bob.find(task="x-town/any")  # an honest one waits for nobody
    assert trio.current_time() - began < 1


async def test_no_peer_has_more_than_its_share_of_streams(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town, attack(town) as (alice, mallory):
        streams = [await kad_stream(mallory, alice) for _ in range(MAX_STREAMS_PER_PEER)]
        await trio.testing.wait_all_tasks_blocked()
        assert await ended(await kad_stream(mallory, alice))
        await streams[0].finish()
        await trio.testing.wait_all_tasks_blocked()
        fresh = await kad_stream(mallory, alice)
        await fresh.send([frame(Message(Kind.PING))])
        assert await replies(fresh, 1)


async def test_streams_without_requests_and_half_requests_are_closed(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town, attack(town) as (alice, mallory):
        silent, half, drips, alive = [await kad_stream(mallory, alice) for _ in range(4)]
        request = frame(Message(Kind.FIND_NODE, bytes(32)))
        await half.send([request[:10]])

        async def drip() -> None:
            with pytest.raises(RemoteError):
                for byte in request:
                    await drips.send([bytes([byte])])
                    await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            with trio.fail_after(4):
                assert await ended(half)
        for _ in range(4):
            await trio.sleep(9)
            await alive.send([request])
            assert await replies(alive, 1)
        with trio.fail_after(0.1):
            assert await ended(silent)


async def test_a_request_larger_than_any_is_not_collected(open_town: OpenTown) -> None:
    async with open_town() as town, attack(town) as (alice, mallory):
        stream = await kad_stream(mallory, alice)
        await stream.send([b"\x80\x80\x08" + bytes(1000)])  # 128 KiB announced
        assert await ended(stream)


async def test_a_request_that_gets_no_answer_does_not_end_the_asking_peer(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice", tuning=CALM)
        async with town.world.open(town.key("mallory")) as mallory:

            async def mute(stream: Stream) -> None:
                while await stream.receive_into(memoryview(bytearray(4096))):
                    pass

            mallory.handle(protocol("town", "kad"), mute)
            await mallory.connect(alice.peer_id, alice.addrs)
            for _ in range(4):
                await trio.sleep(5)
                assert await alice.find(task="x-town/any") == []
        bob = await town.peer("bob", tuning=CALM)
        assert await bob.find(task="x-town/any") == []
        assert len(await bob.peers()) == 1  # and mallory, who never answers, is passed on to nobody
