"""Who asks a peer too fast is told so, asks again as fast as it may, and takes the peer for no dead one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.dht.holding.limits import MAX_TOLD
from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import OfferStore
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.walks.storing import Store
from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.kad import SLOW_DOWN, Framer, Kind, Message, frame
from modelnet_p2p.names import Keys, protocol, provider_key
from modelnet_p2p.node.overlay.driver import Overlay, open_overlay
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.node.transport.memory import MemoryWorld
from modelnet_p2p.records import (
    Manifest,
    OfferRecord,
    Sealed,
    cards_of,
    seal_manifest,
    seal_offer,
)
from modelnet_p2p.tuning import WAN, Tuning

NAME = "slow"
KAD = protocol(NAME, "kad")
NOW_US = 1_700_000_000_000_000
ABSURD_MS = 2**32 - 1


def key_of(name: str) -> KeyPair:
    return KeyPair(hashlib.sha256(name.encode()).digest())


@asynccontextmanager
async def open_peer(world: MemoryWorld, name: str, tuning: Tuning = WAN) -> AsyncIterator[Overlay]:
    key = key_of(name)
    table, store = RoutingTable(key.id, tuning.k), OfferStore()
    server = KadServer(key.id, NAME, table, store)
    async with (
        world.open(key, tuning=tuning) as network,
        open_overlay(network, server, table, tuning, NAME, lambda: NOW_US, serves=True) as overlay,
    ):
        yield overlay


def card(key: KeyPair, number: int) -> Sealed:
    """What lies under a key of its own, sealed by the provider alone."""
    model = f"alice/m{number}"
    manifest = Manifest(
        owner=key.id, name=model, version="", task=f"x-alice/t{number}", licence="mit", digest=None,
        issued_unix=NOW_US // 1_000_000,
    )  # fmt: skip
    offer = OfferRecord(
        provider=key.id, network=NAME, manifest=manifest, manifest_envelope=seal_manifest(manifest, key),
        seq=1, issued_us=NOW_US, expires_us=NOW_US + 3600 * 1_000_000,
    )  # fmt: skip
    [sealed] = cards_of(seal_offer(offer, key), key)
    return sealed


def replies_of(overlay: Overlay) -> Counter[str]:
    """What this peer says from now on to those it refuses, and how many it serves."""
    said: Counter[str] = Counter()
    on_request = overlay.answering.limits.on_request

    def watched(*args: Any, **more: Any) -> Any:
        answer = on_request(*args, **more)
        said["served" if isinstance(answer, float) else SLOW_DOWN] += 1
        return answer

    overlay.answering.limits.on_request = watched  # type: ignore[method-assign]  # a tap, it still decides
    return said


async def test_five_hundred_records_for_a_slow_holder_all_arrive_and_it_stays_in_the_table(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world, alice_key = MemoryWorld(), key_of("alice")
    sealeds = [card(alice_key, number) for number in range(500)]
    failures: list[PeerId] = []
    async with open_peer(world, "alice") as alice, open_peer(world, "bob") as bob:
        await alice.meet(bob.me, bob.network.addrs)
        said = replies_of(bob)
        on_failed = alice.table.failed

        def failed(peer: PeerId, now: float) -> None:
            failures.append(peer)
            on_failed(peer, now)

        alice.table.failed = failed  # type: ignore[method-assign]  # a tap, it still decides  # watched, and as it was

        async def store(sealed: Sealed) -> None:
            [key] = sealed.keys
            stored = 0
            while not stored:  # a walk ends early when bob does not come to it in ten seconds
                walk = Store(key, (sealed,), alice.contact(), alice.seeds(key), tuning=WAN)
                await alice.run(walk)
                stored = walk.report.stored
                await trio.sleep(0 if stored else 1)

        began = trio.current_time()
        with trio.fail_after(200):
            async with trio.open_nursery() as nursery:
                for sealed in sealeds:
                    nursery.start_soon(store, sealed)
        took = trio.current_time() - began
        assert len(bob.server.store) == 500
        assert failures == []
        assert bob.me in alice.table
        assert said["served"] >= 1000  # a walk and a store each
        assert 0 < said[SLOW_DOWN] < 200
        assert 40 <= took < 80  # 200 at once, and the others 20 a second
        assert alice.patience.seconds <= WAN.patience  # the wait was ours


async def test_a_burst_too_long_for_the_request_timeout_ends_as_busy_and_counts_against_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = MemoryWorld()
    async with open_peer(world, "alice") as alice, open_peer(world, "bob") as bob:
        await alice.meet(bob.me, bob.network.addrs)
        channel = alice.asking._channel(bob.me)
        ends: Counter[str] = Counter()

        async def ask(number: int) -> None:
            try:
                await channel.request(Message(Kind.FIND_NODE, b"%d" % number), WAN.request_timeout)
                ends["answered"] += 1
            except RemoteError as error:
                ends[f"{error.code} {error.retryable} {error.message}"] += 1

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(ask, number)
        assert ends["answered"] > 340  # of 200 and ten seconds of 20
        del ends["answered"]
        assert list(ends) == [f"busy True {bob.me.short} asks us to slow down"]


async def test_records_that_cost_too_many_checks_wait_and_none_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world, alice_key = MemoryWorld(), key_of("alice")
    strict = replace(
        WAN, requests_per_second=500.0, requests_burst=500, checks_per_second=10.0, checks_burst=20
    )
    async with open_peer(world, "alice") as alice, open_peer(world, "bob", strict) as bob:
        await alice.meet(bob.me, bob.network.addrs)
        said = replies_of(bob)
        began = trio.current_time()
        for round_ in range(2):
            for number in range(60):
                sealed = card(alice_key, number)
                [key] = sealed.keys
                await alice.run(walk := Store(key, (sealed,), alice.contact(), alice.seeds(key), tuning=WAN))
                assert walk.report.stored == 1
            if round_ == 0:
                first, told = trio.current_time() - began, said[SLOW_DOWN]
        assert told > 0
        assert first >= 3.9  # 60 checks, of which 20 are free
        assert said[SLOW_DOWN] == told  # the same bytes again cost no check
        assert trio.current_time() - began - first < 1


async def refusing(stream: Stream, retry_ms: int, asked: list[float]) -> None:
    framer, buffer = Framer(), memoryview(bytearray(4096))
    while count := await stream.receive_into(buffer):
        for request in framer.feed(bytes(buffer[:count])):
            asked.append(trio.current_time())
            reply = Message(request.kind, request.key, records=(), refused=SLOW_DOWN, retry_ms=retry_ms)
            await stream.send([frame(reply)])


@pytest.mark.parametrize("retry_ms", [0, 1, 300, ABSURD_MS])
async def test_who_only_ever_says_slow_down_is_as_good_as_silent(
    retry_ms: int, autojump_clock: trio.testing.MockClock
) -> None:
    world, asked = MemoryWorld(), list[float]()
    async with open_peer(world, "alice") as alice, world.open(key_of("mallory")) as mallory:
        mallory.handle(KAD, lambda stream: refusing(stream, retry_ms, asked))
        await alice.meet(mallory.id, mallory.addrs)
        assert mallory.id in alice.table
        asked.clear()
        began = trio.current_time()
        with pytest.raises(RemoteError, match="asks us to slow down") as caught:
            await alice.asking._channel(mallory.id).request(Message(Kind.PING), WAN.request_timeout)
        assert caught.value.code is Code.DEADLINE
        assert trio.current_time() - began <= WAN.request_timeout + 0.1
        assert 1 <= len(asked) <= 40
        await alice.look_around()  # a walk that asks it ends, and it is on its way out
        for _ in range(2):
            await alice.look_around()
            await trio.sleep(WAN.request_timeout)
        assert mallory.id not in alice.table


async def test_a_flooder_that_claims_to_be_ours_is_told_and_slowed_and_honest_peers_wait_for_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = MemoryWorld()
    async with (
        open_peer(world, "alice") as alice,
        open_peer(world, "bob") as bob,
        world.open(key_of("mallory"), listen=False) as mallory,
    ):
        await alice.meet(bob.me, bob.network.addrs)
        await mallory.connect(bob.me, bob.network.addrs)
        said = replies_of(bob)
        streams = [await mallory.open_stream(bob.me, KAD) for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(flood, stream)
            await trio.sleep(20)
            began = trio.current_time()
            assert (await alice.asking._channel(bob.me).request(Message(Kind.PING), 10.0)).refused == ""
            assert trio.current_time() - began < 0.1
            nursery.cancel_scope.cancel()
        assert WAN.requests_burst < said["served"] <= WAN.requests_burst + 21 * WAN.requests_per_second
        assert 0 < said[SLOW_DOWN] <= said["served"] + MAX_TOLD  # it is not answered as fast as it asks


async def flood(stream: Stream) -> None:
    """Ask without listening."""

    async def listen() -> None:
        while await stream.receive_into(memoryview(bytearray(65536))):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        while True:
            await stream.send([frame(Message(Kind.PING, records=())) * 50])


async def test_a_stock_peer_is_served_late_and_never_refused(autojump_clock: trio.testing.MockClock) -> None:
    world = MemoryWorld()
    async with open_peer(world, "bob") as bob, world.open(key_of("stock"), listen=False) as stock:
        await stock.connect(bob.me, bob.network.addrs)
        replies = await ask_as_stock(stock, bob, 300)
        assert len(replies) == 300
        assert not any(reply.refused or reply.retry_ms for reply in replies)
        assert trio.current_time() >= 100 / WAN.requests_per_second - 0.1


async def ask_as_stock(stock: Network, bob: Overlay, count: int) -> list[Message]:
    stream = await stock.open_stream(bob.me, KAD)
    framer, buffer, replies = Framer(), memoryview(bytearray(65536)), list[Message]()
    for _ in range(count):
        await stream.send([frame(Message(Kind.FIND_NODE, b"\x12\x20" + bytes(32)))])
    while len(replies) < count and (got := await stream.receive_into(buffer)):
        replies += framer.feed(bytes(buffer[:got]))
    return replies


def test_the_key_of_a_card_is_its_tasks() -> None:
    """So that each of the records above lies under a key of its own."""
    sealed = card(key_of("alice"), 7)
    assert list(sealed.keys) == [provider_key(Keys(NAME).task("x-alice/t7"))]
