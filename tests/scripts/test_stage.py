"""What a rig is asked to do: the same orders for every system, here for one that answers at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from benches.rigs import stage
from benches.rigs.in_trio import together
from benches.rigs.stage import Line, perform


class NearbyRig:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.calls: Mapping[str, stage.Action] = {"peer": self.echo}
        self.ways: Sequence[str] = ("in one", "in two")
        self.echoes = 0
        self.at_once = self.most_at_once = 0
        self.sent: list[tuple[int, str]] = []
        self.prepared: list[int] = []
        self.greeted: list[int] = []

    async def echo(self) -> None:
        self.echoes += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await trio.lowlevel.checkpoint()
        self.at_once -= 1

    def prepare(self, mebibytes: int) -> None:
        self.prepared.append(mebibytes)

    async def up(self, mebibytes: int, way: str) -> None:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        self.sent.append((mebibytes, way))

    @asynccontextmanager
    async def strangers(self, count: int) -> AsyncIterator[Sequence[stage.Action]]:
        def greeting(number: int) -> stage.Action:
            async def greet() -> None:
                self.greeted.append(number)

            return greet

        yield [greeting(number) for number in range(count)]


async def ask(rig: NearbyRig, **order: object) -> Line:
    return await perform(order, rig, together)


async def test_calls_are_timed_one_by_one() -> None:
    rig = NearbyRig()
    told = await ask(rig, do="calls", to="peer", count=7)
    assert rig.echoes == len(told["seconds"]) == 7
    assert rig.most_at_once == 1
    assert all(seconds >= 0 for seconds in told["seconds"])


async def test_a_rate_has_so_many_callers() -> None:
    rig = NearbyRig()
    told = await ask(rig, do="rate", callers=16, seconds=0.01)
    assert rig.most_at_once == 16
    assert told["calls"] == rig.echoes >= 16
    assert told["seconds"] >= 0.01


async def test_a_tensor_goes_the_way_that_is_asked_for() -> None:
    rig = NearbyRig()
    told = await ask(rig, do="up", mebibytes=16, way="in two", times=3)
    assert rig.sent == [(16, "in two")] * 3
    assert len(told["seconds"]) == 3


async def test_a_tensor_can_be_made_before_it_is_sent() -> None:
    rig = NearbyRig()
    assert await ask(rig, do="prepare", mebibytes=128) == {}
    assert (rig.prepared, rig.sent) == ([128], [])


async def test_the_first_stranger_does_not_count() -> None:
    rig = NearbyRig()
    told = await ask(rig, do="connect", times=4)
    assert rig.greeted == [0, 1, 2, 3, 4]
    assert len(told["seconds"]) == 4


async def test_small_calls_go_on_until_the_bulk_is_over() -> None:
    rig = NearbyRig()
    told = await ask(rig, do="beside", mebibytes=128, times=8, count=10)
    assert rig.sent == [(128, "in one")] * 8
    assert len(told["quiet"]) == 10
    assert len(told["bulk"]) == 8
    assert rig.echoes == 10 + len(told["busy"]) > 10


async def test_an_order_that_nobody_knows_ends_the_rig() -> None:
    with pytest.raises(SystemExit, match="dance"):
        await ask(NearbyRig(), do="dance")
