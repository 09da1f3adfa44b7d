"""The real network against what only a real one meets: busy ports, strangers, frozen processes, abuse."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from intruder import intrude
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport import identify, negotiation
from modelnet_p2p.node.transport.contract import ConnectionLost, Stream
from modelnet_p2p.node.transport.libp2p_network import Libp2pNetwork, open_libp2p
from modelnet_p2p.node.transport.upgrade import SLACK
from modelnet_p2p.node.transport.wire.yamux import ACK, HEADER, RST, WINDOW_UPDATE
from modelnet_p2p.tuning import TEST, Tuning

pytestmark = pytest.mark.live
LOCAL = "/ip4/127.0.0.1/tcp/0"
Exactly = Callable[[Stream, int], Awaitable[bytes]]
Keys = Callable[[str], KeyPair]


@asynccontextmanager
async def open_peer(key: KeyPair, *listen: str, tuning: Tuning = TEST) -> AsyncIterator[Libp2pNetwork]:
    async with open_libp2p(key, listen=listen, tuning=tuning, network="test") as network:
        yield network


def port_of(network: Libp2pNetwork) -> int:
    return int(network.addrs[0].split("/")[4])


async def echo(stream: Stream) -> None:
    buffer = memoryview(bytearray(65536))
    while n := await stream.receive_into(buffer):
        await stream.send([buffer[:n]])


async def works(alice: Libp2pNetwork, bob: Libp2pNetwork, exactly: Exactly) -> None:
    """Alice, who may be new to bob, gets an answer from him."""
    await alice.connect(bob.id, bob.addrs)
    async with await alice.open_stream(bob.id, "/echo") as stream:
        await stream.send([b"works"])
        assert await exactly(stream, 5) == b"works"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


# --- listening -------------------------------------------------------------------------------------


async def test_a_busy_port_is_in_use_and_named(key: Keys) -> None:
    async with open_peer(key("alice"), LOCAL) as alice:
        busy = alice.addrs[0].partition("/p2p/")[0]
        before = descriptors()
        with pytest.raises(LocalError) as caught:
            async with open_peer(key("bob"), LOCAL, busy):
                pass
        assert caught.value.code is Code.IN_USE
        assert busy in caught.value.message
        assert descriptors() == before


@pytest.mark.parametrize("addr", ["/ip4/192.0.2.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1", "here"])
async def test_an_address_that_cannot_be_listened_on_is_bad_input(key: Keys, addr: str) -> None:
    with pytest.raises(LocalError) as caught:
        async with open_peer(key("alice"), addr):
            pass
    assert caught.value.code is Code.BAD_INPUT
    assert addr in caught.value.message


async def test_a_peer_that_listens_everywhere_has_addresses_that_can_be_dialled(
    key: Keys, exactly: Exactly
) -> None:
    async with open_peer(key("alice"), "/ip4/0.0.0.0/tcp/0") as alice, open_peer(key("bob")) as bob:
        assert not any("0.0.0.0" in addr for addr in alice.addrs)
        assert any("/ip4/127.0.0.1/" in addr for addr in alice.addrs)
        alice.handle("/echo", echo)
        await works(bob, alice, exactly)


async def test_ipv6_works_where_the_machine_has_it(key: Keys, exactly: Exactly) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    async with open_peer(key("alice"), "/ip6/::1/tcp/0") as alice, open_peer(key("bob")) as bob:
        alice.handle("/echo", echo)
        await works(bob, alice, exactly)


# --- frozen and dead processes ---------------------------------------------------------------------


async def test_a_frozen_process_is_found_by_deadlines_and_a_killed_one_at_once(
    carol: tuple[subprocess.Popen[str], str], key: Keys, exactly: Exactly
) -> None:
    process, addr = carol
    peer = PeerId.parse(addr.rpartition("/")[2])
    async with open_peer(key("alice")) as alice, open_peer(key("bob")) as bob:
        await alice.connect(peer, [addr])
        await alice.protocols(peer)
        stream = await alice.open_stream(peer, "/echo")
        await stream.send([b"alive"])
        assert await exactly(stream, 5) == b"alive"

        os.kill(process.pid, signal.SIGSTOP)
        await stream.send([b"hello?"])
        with trio.move_on_after(0.2) as scope:
            await stream.receive_into(memoryview(bytearray(1)))
        assert scope.cancelled_caught
        with trio.fail_after(TEST.dial_timeout + 2), pytest.raises(RemoteError) as caught:
            await alice.open_stream(peer, "/something/else")
        assert caught.value.code is Code.DEADLINE
        with trio.fail_after(TEST.dial_timeout + 2), pytest.raises(RemoteError) as caught:
            await bob.connect(peer, [addr])
        assert caught.value.code is Code.DEADLINE

        os.kill(process.pid, signal.SIGCONT)
        with trio.fail_after(5):
            assert await exactly(stream, 6) == b"hello?"

        process.kill()
        with trio.fail_after(2), pytest.raises(ConnectionLost):
            await stream.receive_into(memoryview(bytearray(1)))
        assert alice.connected() == frozenset()
        with pytest.raises(RemoteError) as caught:
            await alice.connect(peer)
        assert caught.value.code is Code.UNREACHABLE
    assert process.stderr is not None
    assert process.stderr.read() == ""


async def test_a_sender_to_a_frozen_process_can_be_cancelled(
    carol: tuple[subprocess.Popen[str], str], key: Keys
) -> None:
    process, addr = carol
    peer = PeerId.parse(addr.rpartition("/")[2])
    async with open_peer(key("alice")) as alice:
        await alice.connect(peer, [addr])
        await alice.protocols(peer)
        os.kill(process.pid, signal.SIGSTOP)
        sent = 0
        with trio.fail_after(8):
            for _ in range(60):  # 15 MiB in all: past the windows of streams into full socket buffers
                with trio.move_on_after(0.05):
                    stream = await alice.open_stream(peer, "/echo")
                    await stream.send([bytes(250_000)])
                    sent += 1
            await alice.disconnect(peer)
        assert 1 <= sent < 60


# --- strangers -------------------------------------------------------------------------------------


async def test_a_listener_that_never_speaks_costs_a_deadline(key: Keys) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        addr = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
        async with open_peer(key("alice"), tuning=replace(TEST, dial_timeout=0.3)) as alice:
            with trio.fail_after(2), pytest.raises(RemoteError) as caught:
                await alice.connect(key("bob").id, [addr])
            assert caught.value.code is Code.DEADLINE
            assert addr in caught.value.message


async def test_an_address_that_hangs_does_not_hold_up_the_good_one(key: Keys) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        hangs = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
        async with open_peer(key("alice")) as alice, open_peer(key("bob"), LOCAL) as bob:
            with trio.fail_after(1.5):
                await alice.connect(bob.id, [hangs, *bob.addrs])


@pytest.mark.parametrize(
    "opening",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(range(256)) * 64,
        negotiation.proposal("/plaintext/2.0.0"),
        negotiation.proposal("/noise"),
        negotiation.proposal("/noise") + b"\xff\xff" + bytes(65535),
        negotiation.proposal("/noise") + b"\x00\x00" * 50,
        negotiation.message(negotiation.HEADER) + negotiation.message("/x") * 100,
    ],
)
async def test_strangers_who_do_not_speak_noise_are_cut_off(
    key: Keys, exactly: Exactly, opening: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    hasty = replace(TEST, dial_timeout=0.5)
    async with open_peer(key("bob"), LOCAL, tuning=hasty) as bob, open_peer(key("alice")) as alice:
        bob.handle("/echo", echo)
        stranger = await trio.open_tcp_stream("127.0.0.1", port_of(bob))
        with trio.fail_after(3):
            async with stranger:
                try:
                    await stranger.send_all(opening)
                    while await stranger.receive_some(65536):
                        pass
                except trio.BrokenResourceError:
                    pass
        await works(alice, bob, exactly)
        assert bob.connected() == {alice.id}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "frames",
    [
        bytes(1200),  # data frames without a stream
        b"\xff" * 1200,
        HEADER.pack(0, 0, 1, 2, 100) + bytes(100),  # a stream id of the wrong parity
        HEADER.pack(0, 0, 1, 1, 0xFFFFFFFF),  # a frame of 4 GiB
        HEADER.pack(0, 1, 1, 1, 0) * 50,  # the same stream opened 50 times
        HEADER.pack(0, 1, 9, 1, 0),  # opened and reset in one
        HEADER.pack(0, 1, 5, 1, 0),  # opened and ended in one
        HEADER.pack(0, 0, 1, 1, 4) + b"\xff\xff\xff\xff",  # no negotiation
        HEADER.pack(0, 0, 1, 1, 30) + negotiation.message("/multistream/9.9.9") + bytes(10),
        HEADER.pack(0, 2, 1, 0, 7) * 2000,  # pings
        HEADER.pack(0, 3, 0, 0, 1),  # going away
        HEADER.pack(0, 0, 0, 1, 1000) + bytes(10),  # a body that never comes, and then the end
    ],
)
async def test_frames_against_the_rules_harm_nobody_else(
    key: Keys, exactly: Exactly, frames: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_peer(key("bob"), LOCAL) as bob, open_peer(key("alice")) as alice:
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        mallory = await intrude(bob, key("mallory"))
        await mallory.write(frames)
        await works(alice, bob, exactly)
        mallory.vanish()
        with trio.fail_after(3):
            while bob.connected() != {alice.id}:
                await trio.sleep(0.01)
        await works(alice, bob, exactly)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_flood_of_streams_from_one_peer_is_bounded(key: Keys, exactly: Exactly) -> None:
    few = replace(TEST, max_streams_per_peer=40)
    async with open_peer(key("bob"), LOCAL, tuning=few) as bob, open_peer(key("alice")) as alice:
        bob.handle("/echo", echo)
        mallory = await intrude(bob, key("mallory"))
        opened = [2 * i + 1 for i in range(40 + SLACK + 200)]
        await mallory.write(b"".join(HEADER.pack(0, WINDOW_UPDATE, 1, id, 0) for id in opened))
        accepted: list[int] = []
        refused: list[int] = []
        with trio.fail_after(3):
            while len(accepted) + len(refused) < len(opened):
                frame = await mallory.frame()
                assert frame is not None
                if frame.kind == WINDOW_UPDATE and frame.flags & ACK:
                    accepted.append(frame.id)
                elif frame.kind == WINDOW_UPDATE and frame.flags & RST:
                    refused.append(frame.id)
        assert accepted + refused == opened
        assert len(accepted) == 40 + SLACK
        await works(alice, bob, exactly)
        mallory.vanish()
        await works(alice, bob, exactly)


async def test_one_peer_gets_its_share_of_connections(key: Keys) -> None:
    async with open_peer(key("bob"), LOCAL, tuning=replace(TEST, max_connections_per_peer=2)) as bob:
        held = [await intrude(bob, key("mallory")) for _ in range(4)]
        with trio.fail_after(3):
            while bob._gate.taken != 2:
                await trio.sleep(0.01)
        for one in held:
            one.vanish()
        with trio.fail_after(3):
            while bob._gate.taken:
                await trio.sleep(0.01)


async def test_a_hundred_connections_leave_no_descriptor(key: Keys, exactly: Exactly) -> None:
    async with open_peer(key("bob"), LOCAL) as bob, open_peer(key("alice")) as alice:
        bob.handle("/echo", echo)
        before = descriptors()
        for i in range(100):
            await works(alice, bob, exactly)
            if i % 3 == 0:
                with pytest.raises(RemoteError):
                    await alice.connect(key("carol").id, [addr.partition("/p2p/")[0] for addr in bob.addrs])
            await (alice if i % 2 else bob).disconnect(bob.id if i % 2 else alice.id)
            with trio.fail_after(3):
                while bob.connected() or alice.connected():
                    await trio.sleep(0.001)
        with trio.fail_after(3):
            while descriptors() > before or bob._gate.taken or alice._gate.taken:
                await trio.sleep(0.01)


# --- identify --------------------------------------------------------------------------------------


def test_identify_says_who_we_are() -> None:
    me = KeyPair(b"a" * 32).id
    raw = identify.encode(me, [f"/ip4/1.2.3.4/tcp/1/p2p/{me}"], ["/b", "/a"], "/ip4/5.6.7.8/tcp/9")
    told = identify.decode(raw[2:] if raw[0] & 0x80 else raw[1:])
    assert told == identify.Told(frozenset({"/a", "/b"}), ("/ip4/1.2.3.4/tcp/1",), identify.AGENT)
    assert identify.AGENT.startswith("modelnet/")


def test_importing_the_network_says_nothing_on_stderr() -> None:
    code = "import modelnet_p2p.node.transport.libp2p_network"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@given(st.binary(max_size=600))
def test_whatever_a_peer_tells_of_itself_is_read_or_refused(noise: bytes) -> None:
    me = KeyPair(b"a" * 32).id
    sound = identify.encode(me, [f"/ip4/1.2.3.4/tcp/1/p2p/{me}"], ["/a"], "/ip4/5.6.7.8/tcp/9")[1:]
    for body in (noise, sound + noise, sound[: len(noise)] + noise):
        try:
            told = identify.decode(body)
        except ValueError:
            continue
        assert len(told.protocols) <= identify.MAX_PROTOCOLS
        assert len(told.addrs) <= identify.MAX_ADDRESSES


@pytest.mark.parametrize("resting", [False, True])
async def test_a_connection_that_only_rests_is_left_in_peace(
    resting: bool, key: Keys, exactly: Exactly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is silent; whether that matters is for those to say who hold its streams."""
    monkeypatch.setattr("modelnet_p2p.node.transport.link.LOOK", 0.02)
    monkeypatch.setattr("modelnet_p2p.node.transport.wire.vitality.IDLE", 0.1)

    async def echo(stream: Stream) -> None:
        if resting:
            stream.rest()
        buffer = memoryview(bytearray(10))
        while count := await stream.receive_into(buffer):
            await stream.send([buffer[:count]])

    async with open_peer(key("bob"), LOCAL) as bob, open_peer(key("alice")) as alice:
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        await alice.protocols(bob.id)
        async with await alice.open_stream(bob.id, "/echo") as stream:
            if resting:
                stream.rest()
            await stream.send([b"here"])
            assert await exactly(stream, 4) == b"here"
            await trio.sleep(0.3)  # identify's streams end
            session = alice._connections[bob.id][0].link.session
            before = session.frames
            await trio.sleep(1.0)
            assert session.frames - before <= 1 if resting else session.frames - before >= 4
