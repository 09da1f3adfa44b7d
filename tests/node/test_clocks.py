"""Peers whose clocks differ: within five minutes nothing happens, beyond both are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.node.checkup.health import MAX_SKEW, concerns
from modelnet_p2p.records.sealed import CLOCK_SKEW_US

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any


def test_the_warning_begins_where_records_are_refused() -> None:
    assert MAX_SKEW * 1_000_000 == CLOCK_SKEW_US


@pytest.mark.parametrize("seconds", [280.0, -280.0])
async def test_a_few_minutes_do_not_matter(
    open_town: OpenTown, clock_is_off: Callable[[float], None], seconds: float
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        clock_is_off(seconds)
        carol = await town.peer("carol")
        assert (await carol.publish("builtin:digits"))["holders"]["stored"] == 1
        assert [offer.provider for offer in await alice.find(model="modelnet/digits")] == [carol.id]
        await carol.unpublish("modelnet/digits")
        await alice.publish("builtin:digits")
        assert [offer.provider for offer in await carol.find(model="modelnet/digits")] == [alice.id]
        await carol.clocks.ask()
        status = await carol.status()
        assert status["clock"]["ahead_s"] == pytest.approx(seconds, abs=5)
        assert "clock" not in [concern.code for concern in concerns(status)]


@pytest.mark.parametrize("seconds", [900.0, -900.0])
async def test_a_clock_that_is_far_off_is_told_on_both_sides(
    open_town: OpenTown, clock_is_off: Callable[[float], None], seconds: float
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        clock_is_off(seconds)
        carol = await town.peer("carol")
        ahead, behind = (carol, alice) if seconds > 0 else (alice, carol)
        with pytest.raises(RemoteError, match="expired") as caught:
            await ahead.publish("builtin:digits")  # signed in what is the other's future
        assert caught.value.code is Code.UNREACHABLE
        assert "this machine's clock or that holder's is wrong" in caught.value.message
        assert "modelnet-peer doctor" in caught.value.hint
        for peer, word in ((ahead, "ahead of"), (behind, "behind")):
            await peer.clocks.ask()
            [concern] = [one for one in concerns(await peer.status()) if one.code == "clock"]
            assert f"15 min {word}" in concern.message


async def test_a_publisher_whose_clock_is_wrong_is_told_so(
    open_town: OpenTown, clock_is_off: Callable[[float], None]
) -> None:
    async with open_town() as town:
        await town.peer("alice")
        await town.peer("bob")
        clock_is_off(660)
        carol = await town.peer("carol")
        with pytest.raises(RemoteError, match="this machine's clock is probably wrong") as caught:
            await carol.publish("builtin:digits")
        assert "2 holders" in caught.value.message
        assert "date -u" in caught.value.hint
        assert "stays published" in caught.value.hint


async def test_one_wrong_clock_among_three_is_not_believed(
    open_town: OpenTown, clock_is_off: Callable[[float], None]
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        await town.peer("bob")
        await town.peer("dave")
        clock_is_off(3600)
        carol = await town.peer("carol")
        for peer, codes in ((alice, 0), (carol, 1)):
            with_others = [other.addrs for other in town.peers.values() if other is not peer]
            for addrs in with_others:
                await peer.bootstrap(addrs)
            await peer.clocks.ask()
            status = await peer.status()
            assert status["clock"]["peers"] == 3
            assert [concern.code for concern in concerns(status)].count("clock") == codes


async def test_who_is_alone_or_asks_nobody_of_ours_knows_nothing(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        await town.peer("carol", listen=False)  # a client: it answers no calls
        await alice.clocks.ask()
        assert (await alice.status())["clock"] == {"peers": 0, "ahead_s": None}
        assert "clock" not in [concern.code for concern in concerns(await alice.status())]
