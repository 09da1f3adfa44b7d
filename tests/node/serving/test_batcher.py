"""Calls that share steps: each gets its own answer or fault, whatever becomes of its neighbours."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend
from modelnet_p2p.node.serving.child.batcher import Batcher
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value


class Doubling(Backend):
    """Takes rows; a step ends when the test says so. A NaN among its rows is a bad input."""

    def __init__(self) -> None:
        async def offload(step: Callable[[], Any]) -> Any:  # Any: as the contract's
            return step()

        super().__init__(Source("doubling"), offload)
        self.steps: list[int] = []
        self.stopped = 0
        self.gate = asyncio.Event()

    @classmethod
    def claims(cls, spec: str) -> bool:
        return False

    async def load(self) -> None: ...

    def describe(self) -> Description:
        return Description("doubling", "x-test/rows", "python", batches=8)

    async def invoke(self, value: Any, params: Mapping[str, Value]) -> Value:
        self.steps.append(len(value))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        if params.get("cancels"):
            raise asyncio.CancelledError
        if np.isnan(value).any():
            raise ValueError("a NaN")
        return value * 2


def rows(number: float, count: int = 1, width: int = 2) -> Any:
    return np.full((count, width), number, np.float32)


def run(story: Callable[[Doubling, Batcher], Awaitable[None]]) -> None:
    async def told() -> None:
        backend = Doubling()
        await asyncio.wait_for(story(backend, Batcher(backend, 8)), 60)

    asyncio.run(told())


async def settled() -> None:
    """Everything that can happen without the model has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_each_gets_its_own_rows() -> None:
    async def story(backend: Doubling, batcher: Batcher) -> None:
        counts = [1, 3, 1, 2, 1, 5, 1, 1]
        tasks = [
            asyncio.create_task(batcher.invoke(rows(n, count), {}, "alice")) for n, count in enumerate(counts)
        ]
        await settled()
        assert backend.steps == [1]  # it was idle: the first one waited for nobody
        backend.gate.set()
        for n, (task, count) in enumerate(zip(tasks, counts, strict=True)):
            np.testing.assert_array_equal(await task, rows(2 * n, count))
        assert sum(backend.steps) == sum(counts)
        assert len(backend.steps) == 3
        assert max(backend.steps) <= 8

    run(story)


def test_what_is_not_alike_runs_apart() -> None:
    async def story(backend: Doubling, batcher: Batcher) -> None:
        calls = [(rows(0), {}), (rows(1), {}), (rows(2, width=3), {}), (rows(3), {"by": 1}), (rows(4), {})]
        tasks = [asyncio.create_task(batcher.invoke(value, params, "")) for value, params in calls]
        await settled()
        backend.gate.set()
        for (value, _), task in zip(calls, tasks, strict=True):
            np.testing.assert_array_equal(await task, value * 2)
        assert backend.steps == [1, 2, 1, 1]

    run(story)


def test_one_bad_input_fails_alone() -> None:
    async def story(backend: Doubling, batcher: Batcher) -> None:
        tasks = [asyncio.create_task(batcher.invoke(rows(n), {}, "")) for n in range(4)]
        bad = asyncio.create_task(batcher.invoke(rows(np.nan), {}, ""))
        more = [asyncio.create_task(batcher.invoke(rows(n), {}, "")) for n in range(4, 7)]
        await settled()
        backend.gate.set()
        for n, task in enumerate(tasks + more):
            np.testing.assert_array_equal(await task, rows(2 * n))
        with pytest.raises(LocalError, match="ValueError: a NaN") as caught:
            await bad
        assert caught.value.code is Code.MODEL_ERROR
        assert len(backend.steps) < 2 + 2 * 3 + 2  # in halves, not one by one

    run(story)


def test_who_leaves_a_step_leaves_at_once_and_harms_nobody() -> None:
    async def story(backend: Doubling, batcher: Batcher) -> None:
        first, *others = [asyncio.create_task(batcher.invoke(rows(n), {}, "")) for n in range(6)]
        await settled()
        backend.gate.set()
        await first
        backend.gate.clear()
        while backend.steps != [1, 5]:
            await asyncio.sleep(0)
        others[1].cancel()
        await asyncio.wait({others[1]})  # though its step goes on
        late = asyncio.create_task(batcher.invoke(rows(9), {}, ""))
        waits = asyncio.create_task(batcher.invoke(rows(8), {}, ""))
        await settled()
        waits.cancel()
        await asyncio.wait({waits})
        assert backend.steps == [1, 5]
        assert backend.stopped == 0
        backend.gate.set()
        for n in (1, 3, 4, 5):
            np.testing.assert_array_equal(await others[n - 1], rows(2 * n))
        np.testing.assert_array_equal(await late, rows(18))
        assert backend.steps == [1, 5, 1]

    run(story)


def test_a_step_that_all_have_left_is_stopped() -> None:
    async def story(backend: Doubling, batcher: Batcher) -> None:
        tasks = [asyncio.create_task(batcher.invoke(rows(n), {}, "")) for n in range(4)]
        await settled()
        for task in tasks[1:]:
            task.cancel()
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert (backend.steps, backend.stopped) == ([1], 1)
        tasks = [asyncio.create_task(batcher.invoke(rows(n), {}, "")) for n in range(4)]
        await settled()
        backend.gate.set()
        await tasks[0]
        backend.gate.clear()
        while backend.steps != [1, 1, 3]:
            await asyncio.sleep(0)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks)
        assert backend.stopped == 2
        backend.gate.set()
        np.testing.assert_array_equal(await batcher.invoke(rows(5), {}, ""), rows(10))

    run(story)


def test_a_model_that_cancels_itself_is_a_fault_for_all_of_its_step() -> None:
    async def story(backend: Doubling, batcher: Batcher) -> None:
        tasks = [asyncio.create_task(batcher.invoke(rows(n), {"cancels": 1}, "")) for n in range(4)]
        await settled()
        backend.gate.set()
        await asyncio.wait(tasks)
        for task in tasks[1:]:
            with pytest.raises(LocalError, match="CancelledError"):
                await task
        np.testing.assert_array_equal(await batcher.invoke(rows(5), {}, ""), rows(10))

    run(story)


def test_nothing_holds_an_input_whose_call_has_ended() -> None:
    async def story(backend: Doubling, batcher: Batcher) -> None:
        async def call(number: float, seen: list[weakref.ref[Any]]) -> None:
            value = rows(number)
            seen.append(weakref.ref(value))
            with suppress(LocalError):
                await batcher.invoke(value, {}, "")

        gc.disable()
        try:
            seen: list[weakref.ref[Any]] = []
            tasks = [asyncio.create_task(call(number, seen)) for number in (1, 2, np.nan, 3)]
            await settled()
            backend.gate.set()
            await asyncio.wait(tasks)
            del tasks
            await settled()
            assert [ref() for ref in seen] == [None] * 4
        finally:
            gc.enable()

    run(story)
