"""All that comes before the muxer: our two ends, the stock Noise and multistream, and strangers."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from modelnet_p2p.errors import Code
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.transport import negotiation
from modelnet_p2p.node.transport.securing import (
    NOISE,
    YAMUX,
    Established,
    HandshakeFailed,
    establish,
    new_static_key,
)
from modelnet_p2p.node.transport.wire.handshake import KEY_BYTES, Handshake
from modelnet_p2p.node.transport.wire.sealing import Opener, Sealer
from sealed import opened, seal

Pipe = trio.StapledStream  # of memory_stream_pair


def key(name: str) -> KeyPair:
    return KeyPair(hashlib.sha256(name.encode()).digest())


ALICE, BOB, MALLORY = key("alice"), key("bob"), key("mallory")


class Raw:
    """One end of a pipe in memory; counts how often it waited for the far side."""

    def __init__(self, pipe: Pipe, at_once: int = 65536) -> None:
        self.pipe = pipe
        self.writes: list[bytes] = []
        self._at_once = at_once

    async def read(self) -> bytes:
        data = await self.pipe.receive_some(self._at_once)
        if not data:
            raise HandshakeFailed(None, "the far side closed the connection")
        return bytes(data)

    async def write(self, data: bytes) -> None:
        self.writes.append(data)
        await self.pipe.send_all(data)


def pair(at_once: int = 65536) -> tuple[Raw, Raw]:
    left, right = memory_stream_pair()
    return Raw(left, at_once), Raw(right, at_once)


async def both(left: Callable[[], Awaitable[Any]], right: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What two tasks return, in this order."""
    results: list[Any] = [None, None]

    async def run(i: int, start: Callable[[], Awaitable[Any]]) -> None:
        results[i] = await start()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, 0, left)
            nursery.start_soon(run, 1, right)
    return results


async def ours(at_once: int = 65536) -> tuple[Established, Established, Raw, Raw]:
    left, right = pair(at_once)
    alice, bob = await both(
        lambda: establish(left, ALICE, new_static_key(), BOB.id),
        lambda: establish(right, BOB, new_static_key(), None),
    )
    return alice, bob, left, right


# --- ours with ours --------------------------------------------------------------------------------


async def test_two_of_ours_need_one_round_trip_and_a_half() -> None:
    alice, bob, left, right = await ours()
    assert (alice.peer, bob.peer, alice.early, bob.early) == (BOB.id, ALICE.id, b"", b"")
    assert (len(left.writes), len(right.writes)) == (2, 1)
    assert left.writes[0].startswith(negotiation.proposal(NOISE))
    assert opened(bob.opener, seal(alice.sealer, b"there")) == b"there"
    assert opened(alice.opener, seal(bob.sealer, b"and back")) == b"and back"


@pytest.mark.parametrize("at_once", [1, 7, 61])
async def test_bytes_may_come_in_pieces(at_once: int) -> None:
    alice, bob, _, _ = await ours(at_once)
    assert opened(bob.opener, seal(alice.sealer, b"there")) == b"there"


@pytest.mark.parametrize("cut", [0, 5])
async def test_what_is_sent_behind_the_handshake_is_opened_or_kept(cut: int) -> None:
    """The dialler may send to the muxer in one packet with its last message; a cut one is completed later."""
    left, right = pair()

    async def dial() -> bytes:
        alice = Handshake(
            initiator=True,
            identity=ALICE,
            static=new_static_key(),
            ephemeral=new_static_key(),
            muxers=(YAMUX,),
        )
        await left.write(negotiation.proposal(NOISE) + alice.start())
        data = await left.read()
        third = alice.receive(data[len(negotiation.proposal(NOISE)) :])
        assert alice.secured is not None
        sealer = Sealer(alice.secured.send_key)
        behind = seal(sealer, b"a frame ") + seal(sealer, b"and another")
        await left.write(third + behind[: len(behind) - cut])
        return behind[len(behind) - cut :]

    later, bob = await both(dial, lambda: establish(right, BOB, new_static_key(), None))
    if cut:
        assert bob.early == b"a frame "
        assert bob.opener.inside
        assert opened(bob.opener, later) == b"and another"
    else:
        assert bob.early == b"a frame and another"


# --- ours with stock py-libp2p ---------------------------------------------------------------------


class StockRaw:
    """What stock code asks of a raw connection, on a pipe in memory."""

    def __init__(self, pipe: Pipe, *, is_initiator: bool) -> None:
        self.pipe = pipe
        self.is_initiator = is_initiator

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.pipe.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self.pipe.send_all(data)

    async def close(self) -> None:
        await self.pipe.aclose()

    def get_remote_address(self) -> None:
        return None


async def stock(pipe: Pipe, me: KeyPair, dials: KeyPair | None) -> Any:
    """Stock multistream and Noise, then multistream for yamux on top; the secured connection."""
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
    from libp2p.custom_types import TProtocol
    from libp2p.peer.id import ID
    from libp2p.security.noise.transport import Transport
    from libp2p.security.security_multistream import SecurityMultistream
    from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
    from libp2p.stream_muxer.yamux.yamux import Yamux

    raw: Any = StockRaw(pipe, is_initiator=dials is not None)
    noise = Transport(create_new_key_pair(me.seed), create_noise_key_pair().private_key)
    security = SecurityMultistream(OrderedDict({TProtocol(NOISE): noise}))
    if dials is not None:
        secured = await security.secure_outbound(raw, ID(bytes(dials.id)))
    else:
        secured = await security.secure_inbound(raw)
    await MuxerMultistream(OrderedDict({TProtocol(YAMUX): Yamux})).select_transport(secured)
    return secured


async def talks(mine: Established, raw: Raw, theirs: Any) -> None:
    await raw.write(seal(mine.sealer, b"there"))
    assert await theirs.read(5) == b"there"
    await theirs.write(b"and back")
    assert opened(mine.opener, await raw.read()) == b"and back"


@pytest.mark.live
async def test_stock_py_libp2p_takes_what_we_dial_with() -> None:
    """In the live part, as the next, only because importing libp2p takes a second."""
    left, right = pair()
    alice, bob = await both(
        lambda: establish(left, ALICE, new_static_key(), BOB.id), lambda: stock(right.pipe, BOB, None)
    )
    assert alice.peer == BOB.id
    assert bob.get_remote_peer().to_bytes() == bytes(ALICE.id)
    await talks(alice, left, bob)


@pytest.mark.live
@pytest.mark.parametrize("at_once", [1, 65536])
async def test_stock_py_libp2p_dials_us(at_once: int) -> None:
    left, right = pair(at_once)
    alice, bob = await both(
        lambda: stock(left.pipe, ALICE, BOB), lambda: establish(right, BOB, new_static_key(), None)
    )
    assert bob.peer == ALICE.id
    assert alice.get_remote_peer().to_bytes() == bytes(BOB.id)
    await talks(bob, Raw(right.pipe), alice)


@pytest.mark.live
async def test_stock_py_libp2p_refuses_us_in_anothers_place() -> None:
    from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

    left, right = pair()

    async def dial() -> None:
        with pytest.raises(PeerIDMismatchesPubkey):
            await stock(left.pipe, ALICE, MALLORY)
        await left.pipe.aclose()

    async def listen() -> None:
        with pytest.raises(HandshakeFailed):
            await establish(right, BOB, new_static_key(), None)

    await both(dial, listen)


# --- ours with strangers ---------------------------------------------------------------------------


async def test_another_peer_than_the_one_dialled_is_named_and_learns_nothing() -> None:
    left, right = pair()

    async def dial() -> None:
        with pytest.raises(HandshakeFailed, match=f"peer {BOB.id} answered instead") as caught:
            await establish(left, ALICE, new_static_key(), MALLORY.id)
        assert (caught.value.code, caught.value.peer) == (Code.UNREACHABLE, str(MALLORY.id))
        await left.pipe.aclose()

    async def listen() -> None:
        with pytest.raises(HandshakeFailed):
            await establish(right, BOB, new_static_key(), None)

    await both(dial, listen)
    assert len(left.writes) == 1  # the message with Alice's identity was never sent


async def test_a_far_side_without_noise_is_told_from_a_broken_one() -> None:
    left, right = pair()
    await right.write(
        negotiation.message(negotiation.HEADER) + negotiation.message(negotiation.NOT_AVAILABLE)
    )
    with pytest.raises(HandshakeFailed, match="does not speak /noise"):
        await establish(left, ALICE, new_static_key(), BOB.id)


async def test_a_muxer_that_we_do_not_speak_is_refused_over_the_sealed_channel() -> None:
    left, right = pair()

    async def dial() -> bytes:
        alice = Handshake(
            initiator=True, identity=ALICE, static=bytes(range(KEY_BYTES)), ephemeral=new_static_key()
        )
        await left.write(negotiation.proposal(NOISE) + alice.start())
        data = await left.read()
        third = alice.receive(data[len(negotiation.proposal(NOISE)) :])
        assert alice.secured is not None
        sealer, opener = Sealer(alice.secured.send_key), Opener(alice.secured.receive_key)
        await left.write(third + seal(sealer, negotiation.proposal("/mplex/6.7.0")))
        answer = opened(opener, await left.read())
        await left.write(seal(sealer, negotiation.message(YAMUX)) + seal(sealer, b"a frame"))
        return answer + opened(opener, await left.read())

    said, bob = await both(dial, lambda: establish(right, BOB, new_static_key(), None))
    header, no = negotiation.message(negotiation.HEADER), negotiation.message(negotiation.NOT_AVAILABLE)
    assert said == header + no + negotiation.message(YAMUX)
    assert (bob.peer, bob.early) == (ALICE.id, b"a frame")


async def test_a_broken_seal_ends_it() -> None:
    left, right = pair()

    async def dial() -> None:
        alice = Handshake(initiator=True, identity=ALICE, static=new_static_key(), ephemeral=new_static_key())
        await left.write(negotiation.proposal(NOISE) + alice.start())
        data = await left.read()
        await left.write(alice.receive(data[len(negotiation.proposal(NOISE)) :]) + b"\x00\x20" + bytes(32))

    async def listen() -> None:
        with pytest.raises(HandshakeFailed, match="did not seal so"):
            await establish(right, BOB, new_static_key(), None)

    await both(dial, listen)


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_make_it_raise_anything_else(data: bytes, dialling: bool) -> None:
    async def run() -> None:
        left, right = pair()
        start = negotiation.proposal(NOISE) if len(data) % 2 else b""
        await right.write(start + data)
        await right.pipe.send_eof()
        with pytest.raises(HandshakeFailed):
            await establish(left, ALICE, new_static_key(), BOB.id if dialling else None)

    trio.run(run)
