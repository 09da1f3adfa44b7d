"""Crowds of searches: those of one question share a walk, and a holder that is asked too much is not believed
to have nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.records import Manifest, OfferRecord, card_of, seal_manifest, seal_offer
from modelnet_p2p.tuning import LAN, WAN, Tuning

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any


def draft_of(key: KeyPair, name: str, task: str, now_us: int) -> OfferRecord:
    manifest = Manifest(owner=key.id, name=name, task=task, licence="", issued_unix=1)
    return OfferRecord(
        provider=key.id,
        network="town",
        manifest=manifest,
        manifest_envelope=seal_manifest(manifest, key),
        seq=now_us // 1000,
        issued_us=now_us,
        expires_us=now_us + 3600 * 1_000_000,
    )


def offered(town: Any, holders: Sequence[Peer], name: str, task: str, of: int = 0) -> None:
    """All these holders keep an offer of one of them, which nobody runs: enough to be found."""
    key, provider = town.key(f"holder {of}"), holders[of].parts.overlay
    sealed = seal_offer(draft_of(key, name, task, provider.wall_us()), key)
    for record in (sealed, card_of(sealed, key, "")):
        for place in record.keys:
            for holder in holders:
                assert holder.parts.overlay.server.store.add(place, record, provider.contact()) is None


def served(holders: Sequence[Peer]) -> Counter[str]:
    """How many requests these serve from now on, and how many they send back as too many."""
    counts: Counter[str] = Counter()

    def watch(holder: Peer) -> None:
        on_request = holder.parts.overlay.answering.limits.on_request

        def watched(*args: Any, **more: Any) -> Any:
            answer = on_request(*args, **more)
            counts["served" if isinstance(answer, float) else "sent back"] += 1
            return answer

        holder.parts.overlay.answering.limits.on_request = watched  # type: ignore[method-assign]  # it still decides

    for holder in holders:
        watch(holder)
    return counts


async def all_at_once(reader: Peer, tasks: Sequence[str], timeout: float) -> tuple[Counter[str], float]:
    """How searches for all these tasks end that begin together, and how long the last of them takes."""
    ends: Counter[str] = Counter()
    began = trio.current_time()

    async def find(task: str) -> None:
        try:
            offers = await reader.find(task, timeout=timeout)
            ends["found" if [offer.record.task for offer in offers] == [task] else "nobody"] += 1
        except RemoteError as error:
            ends[f"{error.code}, retryable {error.retryable}: {error.message}"] += 1

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(find, task)
    return ends, trio.current_time() - began


async def settled(town: Any, peers: int, tuning: Tuning) -> tuple[list[Peer], Peer]:
    """Holders, and one who reads, long after they have met."""
    holders = [await town.peer(f"holder {number}", tuning=tuning) for number in range(peers)]
    reader = await town.peer("reader", tuning=tuning)
    await trio.sleep(60)
    return holders, reader


@pytest.mark.parametrize("tuning", [WAN, LAN], ids=lambda tuning: tuning.name)
async def test_two_hundred_searches_for_one_task_make_one_walk(
    tuning: Tuning, open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        holders, reader = await settled(town, 5, tuning)
        offered(town, holders, "acme/one", "x-acme/one")
        said = served(holders)
        ends, took = await all_at_once(reader, ["x-acme/one"] * 200, 30.0)
        assert ends == {"found": 200}
        assert said["served"] <= 12  # of the task, and of the model behind its card
        assert took < 1


@pytest.mark.parametrize("tuning", [WAN, LAN], ids=lambda tuning: tuning.name)
async def test_two_hundred_searches_for_as_many_tasks_wait_for_each_other(
    tuning: Tuning, open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """Two holders serve them all: that is more than their bursts."""
    async with open_town() as town:
        holders, reader = await settled(town, 2, tuning)
        tasks = [f"x-acme/t{number}" for number in range(200)]
        for number, task in enumerate(tasks):
            offered(town, holders, f"acme/m{number}", task, number % 2)
        ends, took = await all_at_once(reader, tasks, 30.0)
        assert ends == {"found": 200}
        assert took < 20


async def test_more_than_can_be_served_in_time_are_told_why_and_none_that_nobody_has_it(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        strict = replace(WAN, requests_burst=20)
        holders, reader = await settled(town, 2, strict)
        tasks = [f"x-acme/t{number}" for number in range(200)]
        for number, task in enumerate(tasks):
            offered(town, holders, f"acme/m{number}", task, number % 2)
        said = served(holders)
        ends, took = await all_at_once(reader, tasks, 15.0)
        found = ends.pop("found")
        assert found > 20
        assert ends == {
            "busy, retryable True: the search took longer than 15 s: 2 peers ask us to slow down": 200 - found
        }
        assert took < 15.1
        assert said["sent back"] < said["served"] / 4
        for holder in holders:
            assert holder.peer_id in reader.parts.overlay.table  # it is the reader who asks too much
        await trio.sleep(30)
        assert await reader.find(tasks[0])


async def test_a_call_is_told_why_too(open_town: OpenTown, autojump_clock: trio.testing.MockClock) -> None:
    async with open_town() as town:
        _, reader = await settled(town, 2, replace(WAN, requests_burst=20))
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(all_at_once, reader, [f"x-acme/t{number}"], 60.0)
            await trio.sleep(1)
            with pytest.raises(RemoteError, match="2 peers ask us to slow down") as caught:
                await reader.invoke("acme/one", "x", timeout=5.0)
            assert caught.value.code is Code.BUSY
            nursery.cancel_scope.cancel()


async def test_a_search_sees_what_was_published_before_it_began_though_another_is_under_way(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """The earlier one waits for a peer that stands still, and has asked the others already."""
    async with open_town() as town:
        holders, reader = await settled(town, 3, WAN)
        offered(town, holders, "acme/early", "x-acme/one")
        town.freeze("holder 2")
        found: list[set[str]] = []

        async def find() -> None:
            found.append({offer.model for offer in await reader.find("x-acme/one")})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(find)
            await trio.sleep(0.1)
            offered(town, holders, "acme/late", "x-acme/one")
            nursery.start_soon(find)
            nursery.start_soon(find)
        assert sorted(map(sorted, found)) == [["acme/early"], *[["acme/early", "acme/late"]] * 2]


async def test_a_publish_beside_a_crowd_of_searches_is_told_why_nobody_heard_of_it(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        _, reader = await settled(town, 2, WAN)
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(all_at_once, reader, [f"x-acme/t{number}"], 60.0)
            await trio.sleep(0.1)
            draft = draft_of(town.key("reader"), "acme/one", "x-acme/one", 0)
            with pytest.raises(RemoteError, match="2 peers ask us to slow down"):
                await reader.parts.publisher.publish(draft)
            nursery.cancel_scope.cancel()
