"""Calls between whole peers when things go wrong around them."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, LocalError, ModelnetError, RemoteError
from modelnet_p2p.events import Call
from modelnet_p2p.exchange import Exchange, Role
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import protocol
from modelnet_p2p.node.calls import outcome
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.memory import MemoryWorld
from modelnet_p2p.tuning import TEST

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
DIGIT = np.zeros((1, 8, 8), np.float32)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "callshop.py").write_text(
        """
def count(until: int):
    yield from range(until)

def large(n: int):
    while True:
        yield bytes(100_000)
"""
    )
    return tmp_path


async def test_a_stream_of_my_own_that_i_do_not_read_ends_that_call_only(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice", tuning=replace(TEST, stall_timeout=0.3))
        await alice.publish("callshop:large", cwd=str(shop))
        items = alice.stream("large", 1, timeout=20)
        await anext(items)
        await trio.sleep(1.0)  # the window fills, nobody reads, the model's side gives up
        with pytest.raises(RemoteError):
            async for _ in items:
                pass
        assert (await alice.status())["models"][0]["in_flight"] == 0


async def test_a_model_that_streams_nothing_gives_an_empty_list(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        await alice.publish("callshop:count", cwd=str(shop))
        assert await alice.invoke("count", 0) == []
        assert await alice.invoke("count", 2) == [0, 1]


async def test_an_endless_answer_is_not_collected_for_ever(
    open_town: OpenTown, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "MAX_COLLECTED_BYTES", 1_000_000)
    async with open_town() as town:
        alice = await town.peer("alice")
        await alice.publish("callshop:large", cwd=str(shop))
        with pytest.raises(RemoteError) as caught:
            await alice.invoke("large", 1)
        assert caught.value.code is Code.TOO_LARGE


async def test_the_search_of_a_stream_ends_in_time_too(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("builtin:digits")
        town.freeze("alice")
        with pytest.raises(RemoteError) as caught, trio.fail_after(3):
            await anext(carol.stream("modelnet/digits", DIGIT, timeout=0.1))
        assert caught.value.code is Code.DEADLINE
        with pytest.raises(RemoteError) as caught, trio.fail_after(3):
            await carol.show("modelnet/digits", timeout=0.1)
        assert caught.value.code is Code.DEADLINE
        with pytest.raises(RemoteError) as caught, trio.fail_after(3):
            await carol.ping(alice.id, 100, timeout=0.1)
        assert caught.value.code is Code.DEADLINE


async def test_a_timeout_that_is_none_is_the_callers_mistake(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        for timeout in (-1.0, float("nan")):
            with pytest.raises(LocalError):
                await alice.find(task="x-town/any", timeout=timeout)
            with pytest.raises(LocalError):
                await alice.invoke("modelnet/digits", DIGIT, timeout=timeout)
            with pytest.raises(LocalError):
                alice.stream("modelnet/digits", DIGIT, timeout=timeout)
        await alice.publish("builtin:digits")
        assert (await alice.invoke("modelnet/digits", DIGIT, timeout=float("inf")))["label"]


async def test_items_do_not_end_quietly_when_their_peer_is_closed(shop: Path) -> None:
    world, key = MemoryWorld(), _key("alice")
    got: list[object] = []
    ends: list[ModelnetError] = []

    async def read(items: Any) -> None:
        try:
            async for item in items:
                got.append(item)
        except LocalError as error:
            ends.append(error)

    async with trio.open_nursery() as nursery, world.open(key) as transport:
        async with Peer.open_on(transport, key, "town", TEST) as peer:
            await peer.publish("callshop:large", cwd=str(shop))
            late = peer.stream("large", 1)
            nursery.start_soon(read, peer.stream("large", 1))
            with trio.fail_after(10):
                while len(got) < 3:
                    await trio.sleep(0.01)
        await read(late)
    assert [error.code for error in ends] == [Code.NOT_RUNNING] * 2


async def test_items_that_are_dropped_cancel_their_call_from_anywhere(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        await alice.publish("callshop:count", cwd=str(shop))
        items = alice.stream("count", 10**9)
        await anext(items)
        box = [items]
        del items
        await trio.to_thread.run_sync(box.clear)  # as the collector might, in another thread
        gc.collect()
        with trio.fail_after(5):
            while (await alice.status())["models"][0]["in_flight"]:
                await trio.sleep(0.01)


async def test_what_the_block_raises_leaves_it_as_it_is(shop: Path) -> None:
    key = _key("alice")
    with pytest.raises(KeyError, match="mine"), single_error():
        async with (
            MemoryWorld().open(key) as transport,
            Peer.open_on(transport, key, "town", TEST) as peer,
        ):
            await peer.publish("callshop:count", cwd=str(shop))
            async for _ in peer.stream("count", 10**9):
                raise KeyError("mine")


async def test_a_flood_of_streams_does_not_keep_honest_callers_out(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("builtin:digits")
        async with town.world.open(town.key("mallory"), listen=False) as mallory:
            await mallory.connect(alice.peer_id, alice.addrs)
            for _ in range(190):
                stream = await mallory.open_stream(alice.peer_id, protocol("town", "call"))
                call = Call("modelnet/digits", DIGIT)
                await stream.send(Exchange(Role.CALLER).send(call))  # and never reads
            assert (await carol.invoke("modelnet/digits", DIGIT))["label"]


def _key(name: str) -> KeyPair:
    return KeyPair(hashlib.sha256(name.encode()).digest())
