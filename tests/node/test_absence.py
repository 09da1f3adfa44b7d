"""Nobody is found, and the reason is told: it is there in other versions, or this clock is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, NotFound
from modelnet_p2p.node.overlay.batches import Tally
from modelnet_p2p.node.peer import Peer
from tests.node.test_searches import TASK, offered

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any


async def why_none(peer: Peer, **question: Any) -> NotFound | None:
    explained = await peer.explain(**question)
    return await peer.why_none(**question, tally=explained.tally, timeout=30.0)


async def who_is_behind(town: Any, clock_is_off: Callable[[float], None]) -> tuple[Peer, Peer]:
    """Alice, who offers acme/own, and bob, whose clock is 20 min behind; two more tell the time."""
    alice, _, _ = [await town.peer(name) for name in ("alice", "dora", "eve")]
    clock_is_off(-1200)
    bob = await town.peer("bob")
    await alice.publish("builtin:digits", model="acme/own")
    return alice, bob


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
        error = await why_none(bob, model="acme/own@3")
        assert error is not None
        assert "versions 2 and 10" in error.message
        with pytest.raises(NotFound, match="version 10 of acme/own is there"):
            await carol.unpublish("acme/own")
            await bob.invoke("acme/own@3", "x")
        assert await why_none(bob, model="acme/other@3") is None
        assert await why_none(bob, model="acme/own") is None  # versions are nothing to whom they are all one


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
        _, bob = await who_is_behind(town, clock_is_off)
        if asked:
            await bob.clocks.ask()
        assert await bob.find(model="acme/own") == []
        questions: tuple[dict[str, Any], ...] = (
            {"model": "acme/own"},
            {"task": "image-classification"},
            {"where": "acme/own"},
        )
        for question in questions:
            assert await bob.find(**question) == []
            error = await why_none(bob, **question)
            assert error is not None
            assert "refused as over or not yet valid: this clock is 20 min behind" in error.message
            assert "date -u" in error.hint
            assert "modelnet-peer doctor" in error.hint
        with pytest.raises(NotFound, match="this clock is 20 min behind"):
            await bob.invoke("acme/own", "x")
        with pytest.raises(NotFound, match="this clock is 20 min behind"):
            await bob.invoke("task:image-classification", "x")
        await bob.find(model="acme/none")
        assert await why_none(bob, model="acme/none") is None  # of that nothing was refused


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
        assert await why_none(bob, model="acme/own") is None  # two of three clocks are as bob's


async def test_a_stray_record_that_is_over_is_no_cause_beside_sound_ones(
    open_town: OpenTown, clock_is_off: Callable[[float], None]
) -> None:
    """Only carol is there to be asked, whose clock is wrong, so the records decide."""
    async with open_town() as town:
        bob = await town.peer("bob")
        for number in range(3):
            await offered(bob, town.key(f"dead {number}"), "acme/own")
        for number in range(30):
            key = town.key(f"other {number}")
            await offered(bob, key, f"acme/m{number}", task="translation", tags=("a",))
        clock_is_off(-7200)
        carol = await town.peer("carol")  # what was over an hour ago is good for her
        for task, name in ((TASK, "acme/own"), (TASK, "acme/late"), ("translation", "acme/later")):
            await offered(carol, town.key("dora"), name, task=task)
        for question, told in (
            ({"model": "acme/late"}, True),
            ({"model": "acme/own"}, False),  # three are of the dead
            ({"where": "task:translation and tag:b"}, False),  # thirty have no such tag
        ):
            explained = await bob.explain(**question)
            assert explained.offers == ()
            assert explained.tally.untimely > 0
            error = await bob.why_none(**question, tally=explained.tally, timeout=30.0)
            assert ("this clock is 120 min ahead" in str(error)) == told, (question, error)


async def test_show_names_a_wrong_clock_and_only_that_of_its_own_search(
    open_town: OpenTown, clock_is_off: Callable[[float], None]
) -> None:
    async with open_town() as town:
        alice, bob = await who_is_behind(town, clock_is_off)
        with pytest.raises(NotFound, match="this clock is 20 min behind"):
            await bob.show("acme/own")
        await alice.unpublish("acme/own")
        for peer in town.peers.values():
            peer.parts.overlay.server.store.expire(1 << 62)
        with pytest.raises(NotFound, match="nobody offers 'acme/own'"):
            await bob.show("acme/own")


async def test_a_wrong_clock_is_named_where_the_owner_is_remembered(
    open_town: OpenTown, clock_is_off: Callable[[float], None]
) -> None:
    async with open_town() as town:
        alice, bob = await who_is_behind(town, clock_is_off)
        bob.owners.trust("acme/own", alice.peer_id, 1.0)
        asked = []
        why = bob.parts.absence.why

        async def counted(*question: Any) -> Any:
            asked.append(question)
            return await why(*question)

        bob.parts.router._why = counted  # only listens
        with pytest.raises(NotFound, match="this clock is 20 min behind"):
            await bob.invoke("acme/own", "x")
        assert len(asked) == 1


@pytest.mark.parametrize("timeout", [0.5, 2.0, 30.0])
async def test_who_finds_nobody_is_told_so_in_time_whatever_the_reasons_take(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock, timeout: float
) -> None:
    async with open_town() as town:
        await town.peer("alice")
        bob = await town.peer("bob")

        async def never() -> None:
            await trio.sleep_forever()

        bob.parts.absence._other_versions = lambda *_: never()
        for ask in (bob.invoke("acme/own@3", "x", timeout=timeout), bob.show("acme/own@3", timeout=timeout)):
            began = trio.current_time()
            with pytest.raises(NotFound, match="offers 'acme/own@3'"):
                await ask
            assert trio.current_time() - began < timeout
        assert await bob.why_none(model="acme/own@3", tally=Tally(), timeout=timeout) is None


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


async def test_each_offer_of_one_provider_has_its_reasons(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        for name in ("acme/one", "acme/two"):
            await alice.publish("builtin:digits", model=name)
        (called,) = await bob.find(model="acme/one")
        bob.parts.memory.succeeded(called, 1000.0)
        explained = await bob.explain("image-classification")
        assert len(explained.offers) == len(explained.moved) == 2
        for offer in explained.offers:
            assert explained.why(offer)[-1] == "own calls took about 1.0 s"
        with pytest.raises(ValueError, match="not in"):
            explained.why(replace(called, rtt_ms=None))  # of another search
