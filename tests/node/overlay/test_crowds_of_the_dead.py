"""Records live for two hours, their providers often not: who lives is found behind any crowd of the dead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.errors import NotFound
from modelnet_p2p.node.overlay import batches
from modelnet_p2p.node.overlay.finder import VITAL_SECONDS
from modelnet_p2p.offers import State
from tests.node.test_searches import TASK, offered

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
MODEL = "acme/many"


@pytest.mark.parametrize("survivor", range(7))
async def test_one_of_seven_lives_on_and_is_found_by_whoever_wants_one(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock, survivor: int
) -> None:
    async with open_town() as town:
        reader = await town.peer("reader")
        names = [f"one of {number}" for number in range(7)]
        for name in names:
            await (await town.peer(name)).publish("builtin:digits", model=MODEL)
        for name in names:
            if name != names[survivor]:
                town.kill(name)
        lives = town.peers[names[survivor]].id
        for question in ({"model": MODEL}, {"task": "image-classification"}, {"where": MODEL}):
            assert [offer.provider for offer in await reader.find(**question, limit=1)] == [lives]
            assert [offer.provider async for offer in reader.search(**question, limit=1)] == [lives]


@pytest.mark.parametrize("question", [{"model": MODEL}, {"task": TASK}, {"where": MODEL}], ids=str)
async def test_who_lives_is_found_behind_more_of_the_dead_than_are_read_at_first(
    open_town: OpenTown,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    question: dict[str, Any],
) -> None:
    monkeypatch.setattr(batches, "LEAST_READ", 4)
    monkeypatch.setattr(batches, "FIRST_SIFTED", 4)
    async with open_town() as town:
        alice, bob, reader = [await town.peer(name) for name in ("alice", "bob", "reader")]
        for number in range(150):  # more than a page
            for holder in (alice, bob, reader):
                await offered(holder, town.key(f"dead {number}"), MODEL)
        await bob.publish("builtin:digits", model=MODEL, task=TASK)
        assert [offer.provider for offer in await reader.find(**question, limit=1)] == [bob.id]
        assert [offer.provider async for offer in reader.search(**question, limit=1)] == [bob.id]
        explained = await reader.explain(**question, limit=1)
        assert explained.tally.silent + 1 <= explained.tally.read <= 151
        assert explained.tally.messages < 30


@pytest.mark.parametrize("dead", [30, 100])  # more than three rounds of pings, and than one batch
@pytest.mark.parametrize("question", [{"model": MODEL}, {"task": TASK}, {"where": MODEL}], ids=str)
async def test_a_crowd_that_nobody_has_pinged_yet_is_pinged_through(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock, question: dict[str, Any], dead: int
) -> None:
    """They died so long ago that no holder tells of it any more."""
    async with open_town() as town:
        alice, bob, reader = [await town.peer(name) for name in ("alice", "bob", "reader")]
        for number in range(dead):
            for holder in (alice, bob, reader):
                await offered(holder, town.key(f"dead {number}"), MODEL, owner=town.key("bob"))
        assert await reader.find(**question, limit=1) == []
        assert await reader.find(**question) == []
        assert [offer async for offer in reader.search(**question, limit=1)] == []
        with pytest.raises(NotFound, match="nobody alive offers"):
            await reader.invoke(question.get("model", f"task:{TASK}"), "x")
        await bob.publish("builtin:digits", model=MODEL, task=TASK)
        await trio.sleep(VITAL_SECONDS + 0.1)
        assert [offer.provider for offer in await reader.find(**question, limit=1)] == [bob.id]
        assert [offer.provider async for offer in reader.search(**question, limit=1)] == [bob.id]
        images = np.zeros((1, 8, 8), dtype=np.float32)
        assert "label" in await reader.invoke(question.get("model", f"task:{TASK}"), images)


async def test_who_lives_is_found_among_the_silent(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """Of hosts that were switched off nobody says that nothing is there: each dial takes its time."""
    async with open_town() as town:
        alice, bob, reader = [await town.peer(name) for name in ("alice", "bob", "reader")]
        for number in range(70):
            key = town.key(f"silent {number}")
            town.world.freeze(key.id)
            for holder in (alice, bob, reader):
                await offered(holder, key, MODEL)
        began = trio.current_time()
        (suspect,) = await reader.find(model=MODEL, limit=1)
        assert suspect.state is State.SUSPECT
        assert trio.current_time() - began < 6  # three rounds of a few, and one of all others
        await trio.sleep(VITAL_SECONDS + 0.1)
        standing = await reader.find(model=MODEL, timeout=4.0)  # half of it is not enough to ask them all
        assert {offer.state for offer in standing} == {State.UNKNOWN}
        await bob.publish("builtin:digits", model=MODEL)
        assert [offer.provider for offer in await reader.find(model=MODEL, limit=1)] == [bob.id]


async def test_who_lives_is_found_behind_models_of_the_dead(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each card leads to another model's key."""
    monkeypatch.setattr(batches, "LEAST_READ", 4)
    monkeypatch.setattr(batches, "MAX_MODELS_READ", 16)
    async with open_town() as town:
        alice, bob, reader = [await town.peer(name) for name in ("alice", "bob", "reader")]
        for number in range(50):
            for holder in (alice, bob, reader):
                await offered(holder, town.key(f"dead {number}"), f"gone/m{number}")
        await bob.publish("builtin:digits", model=MODEL, task=TASK)
        assert [offer.provider for offer in await reader.find(TASK, limit=1)] == [bob.id]
        assert await reader.find("x-acme/nothing") == []
