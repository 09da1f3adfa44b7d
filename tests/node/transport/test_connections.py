"""The contract of connections: who is dialled, what is told of them, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport.contract import Network, Stream

Opener = Callable[..., AbstractAsyncContextManager[Network]]
Exactly = Callable[[Stream, int], Awaitable[bytes]]
Keys = Callable[[str], KeyPair]
NOWHERE = "/ip4/127.0.0.1/tcp/1"


async def echo(stream: Stream) -> None:
    buffer = memoryview(bytearray(1000))
    while n := await stream.receive_into(buffer):
        await stream.send([buffer[:n]])


async def settle(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


async def test_both_sides_hear_of_each_other_once(open_peer: Opener) -> None:
    heard: list[tuple[str, PeerId]] = []
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        alice.on_connected(lambda peer: heard.append(("alice +", peer)))
        alice.on_disconnected(lambda peer: heard.append(("alice -", peer)))
        bob.on_connected(lambda peer: heard.append(("bob +", peer)))
        bob.on_disconnected(lambda peer: heard.append(("bob -", peer)))
        await alice.connect(bob.id, bob.addrs)
        await alice.connect(bob.id, bob.addrs)
        await alice.connect(bob.id)
        await settle(lambda: bob.connected() == {alice.id})
        assert alice.connected() == {bob.id}
        await alice.disconnect(bob.id)
        assert alice.connected() == frozenset()
        await settle(lambda: not bob.connected())
        await alice.disconnect(bob.id)
    assert sorted(heard) == [
        ("alice +", bob.id),
        ("alice -", bob.id),
        ("bob +", alice.id),
        ("bob -", alice.id),
    ]


async def test_callers_at_once_share_one_dial(open_peer: Opener) -> None:
    heard: list[PeerId] = []
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.on_connected(heard.append)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(alice.connect, bob.id, bob.addrs)
        await alice.protocols(bob.id)
        assert heard == [alice.id]
        await alice.disconnect(bob.id)
        assert alice.connected() == frozenset()


async def test_a_dial_in_vain_names_peer_and_addresses_and_bars_no_later_one(
    open_peer: Opener, key: Keys
) -> None:
    carol = key("carol").id
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        for _ in range(2):
            with pytest.raises(RemoteError) as caught:
                await alice.connect(bob.id, [NOWHERE])
            assert caught.value.code is Code.UNREACHABLE
            assert caught.value.peer == str(bob.id)
            assert NOWHERE in caught.value.message
        with pytest.raises(RemoteError) as caught:
            await alice.connect(carol)
        assert "no address" in caught.value.message
        with pytest.raises(RemoteError) as caught:  # bob is there, not carol
            await alice.connect(carol, [addr.partition("/p2p/")[0] for addr in bob.addrs])
        assert caught.value.code is Code.UNREACHABLE
        with pytest.raises(RemoteError):  # an address that says itself that it is bob's
            await alice.connect(carol, bob.addrs)
        await alice.connect(bob.id, [NOWHERE, "/ip4/127.0.0.1/udp/4001/quic-v1", *bob.addrs])
        assert alice.connected() == {bob.id}


async def test_callers_with_different_addresses_each_get_their_chance(open_peer: Opener) -> None:
    outcomes: list[str] = []

    async def connect(network: Network, peer: PeerId, addrs: list[str]) -> None:
        try:
            await network.connect(peer, addrs)
            outcomes.append("connected")
        except RemoteError:
            outcomes.append("failed")

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, alice, bob.id, [NOWHERE])
            nursery.start_soon(connect, alice, bob.id, list(bob.addrs))
        assert "connected" in outcomes
        assert alice.connected() == {bob.id}


async def test_nonsense_is_the_callers_mistake(open_peer: Opener, key: Keys) -> None:
    async with open_peer("alice") as alice:
        for addr in ("", "nonsense", "/ip4/1.2.3.400/tcp/1", "/ip4/1.2.3.4/tcp/99999"):
            with pytest.raises(LocalError) as caught:
                await alice.connect(key("bob").id, [addr])
            assert caught.value.code is Code.BAD_INPUT
        with pytest.raises(LocalError):
            await alice.connect(alice.id, alice.addrs)


async def test_a_stranger_has_no_streams_and_no_protocols(open_peer: Opener, key: Keys) -> None:
    bob = key("bob").id
    async with open_peer("alice") as alice:
        for attempt in (alice.open_stream(bob, "/echo"), alice.protocols(bob)):
            with pytest.raises(RemoteError) as caught:
                await attempt
            assert caught.value.code is Code.UNREACHABLE
        assert alice.peer_addrs(bob) == ()
        assert alice.remote_group(bob) is None


async def test_a_client_dials_out_and_is_called_back_on_its_connection(
    open_peer: Opener, exactly: Exactly
) -> None:
    async with open_peer("alice", listen=False) as alice, open_peer("bob") as bob:
        assert alice.addrs == ()
        assert all(addr.endswith(f"/p2p/{bob.id}") for addr in bob.addrs)
        alice.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        await settle(lambda: alice.id in bob.connected())
        async with await bob.open_stream(alice.id, "/echo") as stream:
            await stream.send([b"back"])
            assert await exactly(stream, 4) == b"back"
        assert bob.peer_addrs(alice.id) == ()


async def test_peers_tell_what_they_speak_and_where_they_are(open_peer: Opener) -> None:
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/one", echo)
        await alice.connect(bob.id, bob.addrs)
        assert "/one" in await alice.protocols(bob.id)
        bob.handle("/two", echo)  # told to those already connected

        async def learnt() -> None:
            while "/two" not in await alice.protocols(bob.id):
                await trio.sleep(0.005)

        with trio.fail_after(5):
            await learnt()
        [where] = [addr.partition("/p2p/")[0] for addr in bob.addrs]
        assert alice.peer_addrs(bob.id) == (where,)
        await bob.protocols(alice.id)
        assert bob.peer_addrs(alice.id) == tuple(addr.partition("/p2p/")[0] for addr in alice.addrs)
        assert alice.remote_group(bob.id) is None  # loopback and private networks are in no group
        await alice.disconnect(bob.id)
        await settle(lambda: not bob.connected())
        await alice.connect(bob.id)  # where it was before
        assert alice.connected() == {bob.id}


async def test_a_handler_added_late_is_reached_though_it_was_never_told(
    open_peer: Opener, exactly: Exactly
) -> None:
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        await alice.connect(bob.id, bob.addrs)
        await alice.protocols(bob.id)
        bob.handle("/late", echo)
        async with await alice.open_stream(bob.id, "/late") as stream:
            await stream.send([b"x"])
            assert await exactly(stream, 1) == b"x"


async def test_a_peer_that_goes_is_gone_and_may_come_back(open_peer: Opener, exactly: Exactly) -> None:
    async with open_peer("alice") as alice:
        for _ in range(2):
            async with open_peer("bob") as bob:
                bob.handle("/echo", echo)
                await alice.connect(bob.id, bob.addrs)
                async with await alice.open_stream(bob.id, "/echo") as stream:
                    await stream.send([b"x"])
                    assert await exactly(stream, 1) == b"x"
            await settle(lambda: not alice.connected())


async def test_a_hundred_connections_leave_nothing_behind(open_peer: Opener, exactly: Exactly) -> None:
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/echo", echo)

        async def once() -> None:
            await alice.connect(bob.id, bob.addrs)
            async with await alice.open_stream(bob.id, "/echo") as stream:
                await stream.send([b"x"])
                assert await exactly(stream, 1) == b"x"
            await alice.disconnect(bob.id)
            await settle(lambda: not bob.connected())

        await once()
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(100):
            await once()
        await settle(lambda: trio.lowlevel.current_statistics().tasks_living <= before)
