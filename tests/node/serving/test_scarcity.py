"""A machine that has no descriptors left: alice says so and goes on."""

from __future__ import annotations

import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: each test knows what its model gives
MakeSource = Callable[..., Source]


def is_open(handle: int) -> bool:
    try:
        os.fstat(handle)
    except OSError:
        return False
    return True


@contextmanager
def only(spare: int) -> Iterator[None]:
    """This process may open that many more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (handle for handle in range(limits[1]) if not is_open(handle))
    last = [next(free) for _ in range(spare + 1)][-1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (last, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def is_busy(step: Awaitable[object]) -> None:
    with pytest.raises(LocalError) as caught:
        await step
    assert caught.value.code is Code.BUSY
    assert caught.value.retryable
    assert "Too many open files" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("spare", range(5))  # two for the socket, three to start a process
async def test_no_descriptor_for_a_new_model(
    models: Models, source: MakeSource, call: Call, spare: int
) -> None:
    with only(spare):
        await is_busy(models.add(source("shop:upper")))
    served = await models.add(source("shop:upper"))
    assert (await call(served, "a"))[0] == "A"


async def test_no_descriptor_for_a_builtin_model(models: Models) -> None:
    with only(0):
        await is_busy(models.add(Source("builtin:digits")))
    await models.add(Source("builtin:digits"))


async def test_no_descriptor_for_one_more_call(models: Models, source: MakeSource, call: Call) -> None:
    served = await models.add(source("shop:later"))
    with only(0):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: call(served, "long", seconds=60.0))
            await trio.testing.wait_all_tasks_blocked()
            await is_busy(call(served, "one more"))
            nursery.cancel_scope.cancel()
    assert (await call(served, "one more"))[0] == "one more!"


async def test_no_descriptor_to_start_again(models: Models, source: MakeSource, call: Call) -> None:
    served = await models.add(source("shop:selfkill"))
    with pytest.raises(LocalError, match="signal 9"):
        await call(served, "x")
    with only(1):
        await is_busy(call(served, "x"))
    with pytest.raises(LocalError, match="signal 9"):
        await call(served, "x")
