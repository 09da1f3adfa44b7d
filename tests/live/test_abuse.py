"""A peer on real sockets under a stranger's abuse: honest callers notice little, and it ends when he does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from modelnet_p2p.errors import Code, ModelnetError, RemoteError
from modelnet_p2p.events import Call
from modelnet_p2p.exchange import Exchange, Role
from modelnet_p2p.frames import HEADER, Kind
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.kad import Kind as KadKind
from modelnet_p2p.kad import Message, frame
from modelnet_p2p.names import protocol
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.tuning import TEST

pytestmark = pytest.mark.live
NETWORK = "abuse"
DIGIT = np.zeros((1, 8, 8), np.float32)
CALM = replace(
    TEST, dial_timeout=10.0, request_timeout=5.0, ping_timeout=5.0, frame_body_timeout=2.0, idle_stream=2.0
)
STREAMS = 150  # of one attacker at once, below what the transport lets him open


def key_of(name: str) -> KeyPair:
    return KeyPair(hashlib.sha256(f"abuse {name}".encode()).digest())


@asynccontextmanager
async def open_peer(name: str, *, listen: bool = True) -> AsyncIterator[Peer]:
    key, where = key_of(name), ["/ip4/127.0.0.1/tcp/0"] if listen else []
    async with (
        open_libp2p(key, listen=where, tuning=CALM, network=NETWORK) as transport,
        Peer.open_on(transport, key, NETWORK, CALM) as peer,
    ):
        yield peer


@asynccontextmanager
async def open_scene() -> AsyncIterator[tuple[Peer, Peer, Network]]:
    """alice serves digits, carol calls her, mallory has a bare connection to her."""
    async with (
        open_peer("alice") as alice,
        open_peer("carol", listen=False) as carol,
        open_libp2p(key_of("mallory"), listen=[], tuning=CALM, network=NETWORK) as mallory,
    ):
        await alice.publish("builtin:digits")
        await carol.bootstrap(alice.addrs)
        await mallory.connect(alice.peer_id, [addr.rpartition("/p2p/")[0] for addr in alice.addrs])
        yield alice, carol, mallory


async def silent(stream: Stream, turn: int) -> None:
    await stream.send([b""])


async def garbage(stream: Stream, turn: int) -> None:
    await stream.send([hashlib.shake_256(b"%d" % turn).digest(70_000)])


async def half_a_frame(stream: Stream, turn: int) -> None:
    head = b"\x81\xa6target\xaemodelnet/digits"
    await stream.send([HEADER.pack(Kind.CALL, 0, len(head), 400 << 20) + head + bytes(1000)])


async def never_reads(stream: Stream, turn: int) -> None:
    await stream.send([b"".join(Exchange(Role.CALLER).send(Call("modelnet/digits", DIGIT)))])


async def pipelines(stream: Stream, turn: int) -> None:
    call = b"".join(Exchange(Role.CALLER).send(Call("modelnet/digits", DIGIT)))
    await stream.send([call * 100])


async def opens_and_resets(stream: Stream, turn: int) -> None:
    await stream.send([b"\x01"])
    await stream.reset()


async def pings_the_dht(stream: Stream, turn: int) -> None:
    await stream.send([frame(Message(KadKind.PING)) * 30])


ABUSES = {
    "call": (silent, garbage, half_a_frame, never_reads, pipelines, opens_and_resets),
    "kad": (silent, garbage, pings_the_dht, opens_and_resets),
}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


async def honest(carol: Peer) -> None:
    """A call that is answered in the end; while a stranger fills the model's queue it may be told `busy`."""
    while True:
        try:
            answer: Any = await carol.invoke("modelnet/digits", DIGIT, timeout=20)
            break
        except RemoteError as error:
            if error.code is not Code.BUSY:
                raise
            await trio.sleep(0.05)
    assert answer["label"]


@pytest.mark.parametrize(
    ("part", "abuse"), [(part, abuse) for part, all_ in ABUSES.items() for abuse in all_]
)
async def test_honest_calls_go_on_while_a_stranger_abuses_a_protocol(part: str, abuse: Any) -> None:
    with single_error():
        await scene(part, abuse)


async def scene(part: str, abuse: Any) -> None:
    async with open_scene() as (alice, carol, mallory):
        before = descriptors()
        streams: list[Stream] = []

        async def attack(turn: int) -> None:
            try:
                stream = await mallory.open_stream(alice.peer_id, protocol(NETWORK, part))
                streams.append(stream)
                with trio.move_on_after(2):
                    await abuse(stream, turn)
            except (ModelnetError, trio.ClosedResourceError):
                pass  # refused, or cut off: as it should be

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for turn in range(STREAMS):
                    nursery.start_soon(attack, turn)
                for _ in range(20):
                    await honest(carol)
            # what he left open is closed for him, although he stays
            while alice.parts.call_server.streams > 1 or alice.parts.overlay.answering.inbound[mallory.id]:
                await trio.sleep(0.1)
            assert alice.parts.call_server._budget.taken == 0
            assert descriptors() <= before + 2
            await honest(carol)
