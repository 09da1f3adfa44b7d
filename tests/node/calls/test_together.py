"""Calls that want the same at the same time make one search, whatever becomes of one of them."""

from __future__ import annotations

import traceback
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from modelnet_p2p.errors import NotFound
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.calls.together import Together
from modelnet_p2p.node.transport.contract import ConnectionLost


class Searches:
    """Counts how often it is asked; each search ends when it may."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = trio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.may_end.wait()
        return number


async def test_a_crowd_makes_one_search_and_who_comes_later_another(autojump_clock: trio.abc.Clock) -> None:
    together, search, found = Together[int](), Searches(), list[int]()

    async def call() -> None:
        found.append(await together.ask("key", search))

    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(call)
        await wait_all_tasks_blocked()
        assert search.begun == 1
        search.may_end.set()
    assert found == [1] * 300
    await call()
    assert found[-1] == 2
    assert not together._seeking


async def test_other_keys_do_not_wait(autojump_clock: trio.abc.Clock) -> None:
    together, search = Together[int](), Searches()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(together.ask, "one", search)
        nursery.start_soon(together.ask, "other", search)
        await wait_all_tasks_blocked()
        assert search.begun == 2
        search.may_end.set()


async def test_where_the_first_is_cancelled_the_next_searches(autojump_clock: trio.abc.Clock) -> None:
    together, search, found = Together[int](), Searches(), list[int]()
    first = trio.CancelScope()

    async def call(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await together.ask("key", search))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, first)
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(call, trio.CancelScope())
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        assert search.begun == 2
        search.may_end.set()
    assert found == [2, 2, 2]


async def test_all_are_told_why_it_failed(autojump_clock: trio.abc.Clock) -> None:
    together, tried = Together[int](), list[int]()

    async def search() -> int:
        tried.append(1)
        await trio.sleep(1)
        raise NotFound("nobody")

    async def call(failures: list[str]) -> None:
        with pytest.raises(NotFound) as refused:
            await together.ask("key", search)
        failures.append(refused.value.message)

    failures: list[str] = []
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(partial(call, failures))
    assert (len(tried), failures) == (1, ["nobody"] * 5)


async def test_each_has_an_error_of_its_own_that_says_the_same(autojump_clock: trio.abc.Clock) -> None:
    """The traceback of one that all raised would hold those of all."""
    together, carol, failures = Together[int](), PeerId.of_key(bytes(32)), list[ConnectionLost]()

    async def search() -> int:
        await trio.sleep(1)
        raise ConnectionLost(carol)

    async def call() -> None:
        with pytest.raises(ConnectionLost) as refused:
            await together.ask("key", search)
        failures.append(refused.value)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(call)
    assert len({id(failure) for failure in failures}) == 5
    for failure in failures:
        assert (str(failure), failure.to_map()) == (
            str(ConnectionLost(carol)),
            ConnectionLost(carol).to_map(),
        )
        assert [frame.name for frame in traceback.extract_tb(failure.__traceback__)] == ["call", "ask"]
    (first,) = {failure.__cause__ for failure in failures}
    assert first is not None
    assert traceback.extract_tb(first.__traceback__)[-1].name == "search"


async def test_who_wants_none_that_began_before_takes_part_in_the_next(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Two are under way at most, and each caller has one that began after it had asked."""
    together, begun, found = Together[float](age=0), list[float](), list[tuple[float, float]]()

    async def search() -> float:
        begun.append(trio.current_time() - began)
        await trio.sleep(10)
        return trio.current_time() - 10 - began

    async def call(asked: float) -> None:
        await trio.sleep_until(began + asked)
        found.append((asked, await together.ask("key", search)))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for asked in (0, 0, 0, 1, 2, 3, 3, 9, 12):
            nursery.start_soon(call, asked)
    assert begun == [0, 1, 10, 12]
    assert sorted(found) == [(0, 0)] * 3 + [(1, 1), (2, 10), (3, 10), (3, 10), (9, 10), (12, 12)]
    assert trio.current_time() - began == 22


async def test_a_search_is_shared_as_long_as_it_is_young_enough(autojump_clock: trio.abc.Clock) -> None:
    together, search, found = Together[int](age=2.0), Searches(), list[int]()

    async def call(after: float) -> None:
        await trio.sleep(after)
        found.append(await together.ask("key", search))

    async with trio.open_nursery() as nursery:
        for after in (0.0, 1.9, 2.1):
            nursery.start_soon(call, after)
        await trio.sleep(3)
        search.may_end.set()
    assert sorted(found) == [1, 1, 2]
