"""Nobody is found, and the reason is told: it is there in other versions, or this clock is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from modelnet_p2p.errors import Code, NotFound
from tests.node.test_searches import offered

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any


async def test_the_versions_that_are_there_are_named(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol, bob = [await town.peer(name) for name in ("alice", "carol", "bob")]
        await alice.publish("builtin:digits", model="acme/own@10")
        await carol.publish("builtin:digits", model="acme/own@2")
        with pytest.raises(NotFound) as caught:
            await bob.invoke("acme/own@3", "x")
        assert caught.value.code is Code.NOT_FOUND
        assert caught.value.message.endswith("'acme/own@3': versions 2 and 10 of acme/own are there")
        assert caught.value.hint == "modelnet-peer find --model acme/own lists what is there"
        error = await bob.why_none(model="acme/own@3")
        assert error is not None
        assert "versions 2 and 10" in error.message
        with pytest.raises(NotFound, match="version 10 of acme/own is there"):
            await carol.unpublish("acme/own")
            await bob.invoke("acme/own@3", "x")
        assert await bob.why_none(model="acme/other@3") is None
        assert await bob.why_none(model="acme/own") is None  # versions are nothing to whom they are all one


async def test_one_without_a_version_is_there_too(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await alice.publish("builtin:digits", model="acme/own")
        with pytest.raises(NotFound, match="one without a version of acme/own is there"):
            await bob.invoke("acme/own@3", "x")


@pytest.mark.parametrize("asked", [True, False])
async def test_a_clock_that_is_behind_is_the_cause(
    open_town: OpenTown, clock_is_off: Callable[[float], None], *, asked: bool
) -> None:
    async with open_town() as town:
        alice, _, _ = [await town.peer(name) for name in ("alice", "dora", "eve")]
        clock_is_off(-1200)
        bob = await town.peer("bob")
        await alice.publish("builtin:digits", model="acme/own")
        if asked:
            await bob.clocks.ask()
        assert await bob.find(model="acme/own") == []
        for question in ({"model": "acme/own"}, {"task": "image-classification"}, {"where": "acme/own"}):
            assert await bob.find(**question) == []
            error = await bob.why_none(**question)
            assert error is not None
            assert "refused as over or not yet valid: this clock is 20 min behind" in error.message
            assert "date -u" in error.hint
            assert "modelnet-peer doctor" in error.hint
        with pytest.raises(NotFound, match="this clock is 20 min behind"):
            await bob.invoke("acme/own", "x")
        with pytest.raises(NotFound, match="this clock is 20 min behind"):
            await bob.invoke("task:image-classification", "x")
        await bob.find(model="acme/none")
        assert await bob.why_none(model="acme/none") is None  # of that nothing was refused


async def test_what_somebody_left_behind_is_no_sign_of_a_wrong_clock(
    open_town: OpenTown, clock_is_off: Callable[[float], None]
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        bob = await town.peer("bob")
        clock_is_off(1200)
        await offered(await town.peer("carol"), town.key("carol"), "acme/own")
        await bob.bootstrap(town.peers["carol"].addrs)
        await bob.bootstrap(alice.addrs)
        await town.peers["alice"].bootstrap(bob.addrs)
        assert await bob.find(model="acme/own") == []
        assert bob.parts.finder.refused["expired"] > 0
        clock_is_off(0)
        await town.peer("dora")
        await bob.bootstrap(town.peers["dora"].addrs)
        assert await bob.why_none(model="acme/own") is None  # two of three clocks are as bob's


async def test_the_calls_that_moved_an_offer_are_told(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol, bob = [await town.peer(name) for name in ("alice", "carol", "bob")]
        for peer in (alice, carol):
            await peer.publish("builtin:digits", model="acme/own")
        offers = await bob.find(model="acme/own")
        called, failed = offers
        bob.parts.memory.succeeded(called, 1000.0)
        bob.parts.memory.failed(failed, busy=False)
        explained = await bob.explain(model="acme/own")
        whys = {offer.provider: explained.why(offer) for offer in explained.offers}
        assert whys[called.provider][-1] == "own calls took about 1.0 s"
        assert whys[failed.provider][-2].startswith("no own call yet: counted as 1.0 s, the fastest other")
        assert whys[failed.provider][-1].startswith("a call failed 0 s ago, which puts it behind all others")
