"""What a model does to its own process stays there: a hog of the interpreter's lock, a leak, a hang."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.worker import regions, sharing

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: each test knows what its model gives
MakeSource = Callable[..., Source]

HANG = 60  # seconds: tells a hang from a machine where others build

VILLAINS = """
import ctypes, os, time
import numpy as np

libc = ctypes.PyDLL(None)  # whose functions keep the interpreter's lock

def hogs(seconds):
    libc.usleep(int(seconds * 1e6))
    return seconds

def hogs_rows(rows):
    libc.usleep(int(float(rows.max()) * 1e6))
    return rows
hogs_rows.batches = 8

kept = []

def leaks(array):
    kept.append(array)
    if len(kept) == 20:
        os._exit(5)
    return len(kept)

def doubles(rows):
    if np.isnan(rows).any():
        raise ValueError("a NaN")
    return rows * 2
doubles.batches = 8
"""


@pytest.fixture
def villain(shop: Path, source: MakeSource) -> MakeSource:
    (shop / "villains.py").write_text(VILLAINS)
    return source


async def test_a_hog_of_the_interpreters_lock_stalls_nobody_else(
    models: Models, villain: MakeSource, call: Call
) -> None:
    hog = await models.add(villain("villains:hogs"))
    other = await models.add(villain("shop:upper"))
    ended: list[str] = []

    async def hogging() -> None:
        await call(hog, 2.0)
        ended.append("hog")

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hogging)
            for _ in range(10):
                assert (await call(other, "hello"))[0] == "HELLO"
            ended.append("others")
    assert ended == ["others", "hog"]


@pytest.mark.parametrize("spec", ["villains:hogs", "villains:hogs_rows"])
async def test_a_hog_is_ended_at_its_deadline_and_is_back(
    models: Models, villain: MakeSource, call: Call, gone: Any, spec: str
) -> None:
    """Its process cannot even hear that its caller has left."""
    served = await models.add(villain(spec))
    value: Any = 600.0 if spec.endswith("hogs") else np.full((1, 2), 600, np.float32)
    pid = served.pid
    assert pid is not None
    with trio.fail_after(HANG):
        with pytest.raises(LocalError) as caught:
            await call(served, value, timeout=0.5)
        assert caught.value.code is Code.DEADLINE
        await gone(pid)
        await call(served, value * 0)  # by then it is back
    assert served.state == "serving"


async def test_who_is_beside_a_hog_that_is_ended_may_ask_again(
    models: Models, villain: MakeSource, call: Call
) -> None:
    served = await models.add(villain("villains:hogs_rows"))
    neighbour: list[LocalError] = []

    async def waiting() -> None:
        with pytest.raises(LocalError) as caught:
            await call(served, np.zeros((1, 2), np.float32))
        neighbour.append(caught.value)

    async def hogging() -> None:
        with pytest.raises(LocalError):
            await call(served, np.full((1, 2), 600, np.float32), timeout=1.0)

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hogging)
            while not served.stats()["in_flight"]:
                await trio.sleep(0.001)
            await trio.sleep(0.2)  # it has begun
            nursery.start_soon(waiting)
    assert neighbour[0].code is Code.MODEL_ERROR
    assert neighbour[0].retryable


def mapped(pid: int | str = "self") -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:modelnet")


async def settled(models: Models) -> None:
    """Until no memory is shared with any worker."""
    with trio.fail_after(HANG):
        while models.shared.taken:
            await trio.sleep(0.01)
    assert mapped() == 0


async def test_what_a_model_leaks_ends_with_its_process(
    models: Models, villain: MakeSource, call: Call
) -> None:
    served = await models.add(villain("villains:leaks"))
    for number in range(1, 20):
        assert (await call(served, np.zeros(1 << 16, np.float32)))[0] == number
    assert models.shared.taken >= 19 << 18
    with pytest.raises(LocalError, match="exit status 5"):
        await call(served, np.zeros(1 << 16, np.float32))
    await settled(models)
    assert not any("modelnet" in path.name for path in Path("/dev/shm").glob("*"))


async def test_shared_steps_give_their_inputs_memory_back(
    models: Models, villain: MakeSource, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "TIDY_SECONDS", 0.02)
    served: Served = await models.add(villain("villains:doubles"))
    wrong: list[int] = []

    async def ask(number: int) -> None:
        value = np.full((1, 1 << 15), np.nan if number % 7 == 0 else number, np.float32)
        try:
            answer = (await call(served, value))[0]
            wrong.extend([number] if answer[0, 9] != 2 * number else [])
        except LocalError:
            wrong.extend([number] if number % 7 else [])

    with trio.fail_after(HANG):
        for lap in range(8):
            async with trio.open_nursery() as nursery:
                for number in range(16 * lap, 16 * lap + 16):
                    nursery.start_soon(ask, number)
    assert wrong == []
    await settled(models)
    with trio.fail_after(HANG):
        while mapped(served.pid or "self"):
            await trio.sleep(0.01)
