"""What the memory world can do to its peers, and what they then see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.transport.contract import ConnectionLost, Stream
from modelnet_p2p.node.transport.memory import MemoryWorld
from modelnet_p2p.tuning import TEST

Exactly = Callable[[Stream, int], Awaitable[bytes]]
Keys = Callable[[str], KeyPair]


async def echo(stream: Stream) -> None:
    buffer = memoryview(bytearray(1000))
    while n := await stream.receive_into(buffer):
        await stream.send([buffer[:n]])


async def test_the_killed_are_lost_to_others_and_stop_serving(key: Keys, exactly: Exactly) -> None:
    world = MemoryWorld()
    ended: list[str] = []

    async def forever(stream: Stream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("handler")

    async with world.open(key("alice")) as alice, world.open(key("bob")) as bob:
        bob.handle("/forever", forever)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/forever")
        await trio.testing.wait_all_tasks_blocked()
        world.kill(bob.id)
        with pytest.raises(ConnectionLost):
            await stream.receive_into(memoryview(bytearray(1)))
        assert alice.connected() == frozenset()
        assert bob.connected() == frozenset()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["handler"]
        with pytest.raises(RemoteError):
            await alice.connect(bob.id, bob.addrs)
        with pytest.raises(RemoteError):
            await bob.connect(alice.id, alice.addrs)


async def test_the_frozen_stay_connected_and_only_deadlines_find_them(
    key: Keys, exactly: Exactly, autojump_clock: trio.testing.MockClock
) -> None:
    world = MemoryWorld()
    async with (
        world.open(key("alice")) as alice,
        world.open(key("bob")) as bob,
        world.open(key("c")) as carol,
    ):
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/echo")
        world.freeze(bob.id)
        assert alice.connected() == {bob.id}
        with trio.move_on_after(60) as scope:
            await stream.receive_into(memoryview(bytearray(1)))
        assert scope.cancelled_caught
        for attempt in (carol.connect(bob.id, bob.addrs), alice.protocols(bob.id)):
            before = trio.current_time()
            with pytest.raises(RemoteError) as caught:
                await attempt
            assert caught.value.code is Code.DEADLINE
            assert trio.current_time() - before == pytest.approx(TEST.dial_timeout)
        world.thaw(bob.id)
        await stream.send([b"hello"])
        assert await exactly(stream, 5) == b"hello"
        await stream.reset()


async def test_a_partition_parts_and_heals(key: Keys) -> None:
    world = MemoryWorld()
    async with (
        world.open(key("alice")) as alice,
        world.open(key("bob")) as bob,
        world.open(key("c")) as carol,
    ):
        await alice.connect(bob.id, bob.addrs)
        await alice.connect(carol.id, carol.addrs)
        world.partition([alice.id, carol.id], [bob.id])
        assert alice.connected() == {carol.id}
        assert bob.connected() == frozenset()
        with pytest.raises(RemoteError) as caught:
            await alice.connect(bob.id, bob.addrs)
        assert caught.value.code is Code.UNREACHABLE
        world.heal()
        await alice.connect(bob.id)
        assert alice.connected() == {bob.id, carol.id}


async def test_public_peers_have_groups(key: Keys) -> None:
    world = MemoryWorld()
    async with (
        world.open(key("alice"), host="8.8.4.4") as alice,
        world.open(key("bob"), host="2a00:1450:4001::7", listen=False) as bob,
    ):
        await bob.connect(alice.id, alice.addrs)
        assert bob.remote_group(alice.id) == "8.8.4.0/24"
        assert alice.remote_group(bob.id) == "2a00:1450:4001::/48"


async def test_a_full_house_admits_nobody_and_keeps_room_for_its_own_dials(key: Keys) -> None:
    world = MemoryWorld()
    small = replace(TEST, max_connections=4)
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(world.open(key("alice"), tuning=small))
        others = [await stack.enter_async_context(world.open(key(f"peer {i}"))) for i in range(5)]
        for network in others[:3]:
            await network.connect(alice.id, alice.addrs)
        with pytest.raises(RemoteError):
            await others[3].connect(alice.id, alice.addrs)
        await alice.connect(others[3].id, others[3].addrs)
        with pytest.raises(RemoteError):
            await alice.connect(others[4].id, others[4].addrs)
        await alice.disconnect(others[0].id)
        await alice.connect(others[4].id, others[4].addrs)


async def test_one_peer_is_in_the_world_once(key: Keys) -> None:
    world = MemoryWorld()
    async with world.open(key("alice")):
        with pytest.raises(LocalError) as caught:
            async with world.open(key("alice")):
                pass
        assert caught.value.code is Code.IN_USE
    async with world.open(key("alice")):
        pass
